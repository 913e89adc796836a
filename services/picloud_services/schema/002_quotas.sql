-- Quotas of users (null: the service's own setting, 0: no limit), what their jobs occupy on the disk, and
-- how much they used lately (see dispatch/fairness.py); kills and deletions that outlive a crash.

ALTER TABLE users RENAME COLUMN cost_cap TO max_cost;
ALTER TABLE users ADD COLUMN max_cores DOUBLE PRECISION;
ALTER TABLE users ADD COLUMN max_memory_bytes BIGINT;
ALTER TABLE users ADD COLUMN max_disk_bytes BIGINT;
ALTER TABLE users ADD COLUMN disk_bytes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN recent_core_seconds DOUBLE PRECISION NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN recent_at DOUBLE PRECISION NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN created_at DOUBLE PRECISION;

-- What arguments and results of before occupy: as jobs/store.py and jobs/outcomes.py count it.
INSERT INTO users (user_id)
  SELECT DISTINCT user_id FROM parts WHERE user_id NOT IN (SELECT user_id FROM users);
UPDATE users SET created_at = (SELECT MIN(created_at) FROM parts p WHERE p.user_id = users.user_id);
UPDATE users SET disk_bytes =
  (SELECT COALESCE(SUM(LENGTH(arguments) + 64 * count), 0) FROM parts p WHERE p.user_id = users.user_id)
  + (SELECT COALESCE(SUM(size_bytes), 0) FROM part_files f WHERE f.user_id = users.user_id)
  + (SELECT COALESCE(SUM(bytes), 0) FROM results r WHERE r.user_id = users.user_id);

-- The job runs, and is to end by request whatever happens to its node or to the service.
ALTER TABLE jobs ADD COLUMN kill_wished BIGINT NOT NULL DEFAULT 0;

-- Deletions by the key of their request, so that one whose answer was lost may be asked for again.
CREATE TABLE deletions (
  user_id BIGINT NOT NULL,
  request_key TEXT NOT NULL,
  deleted BIGINT NOT NULL,
  seen_seconds DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (user_id, request_key)
);
CREATE INDEX deletions_by_age ON deletions (seen_seconds);
