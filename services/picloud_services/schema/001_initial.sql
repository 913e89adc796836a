-- The store: jobs and what belongs to them. Times (_at) are UTC seconds, sizes bytes, ids of users their uid.
-- Long columns come last in their row: what stands behind them is read through all their pages.
-- Jobs are numbered without gaps inside a part; a row of `jobs` is narrow, what is shared by many is in
-- `batches`, `parts` and `results`. Stored statuses are waiting, queued and the four final ones:
-- "processing" is what the engine says at the moment, see jobs/live.py.

-- One row. The next numbers to give out, and how many seconds the service has seen pass (ages are
-- measured with it, so that a jump of the wall clock removes nothing).
CREATE TABLE sequences (
  name TEXT PRIMARY KEY,
  jid BIGINT NOT NULL,
  batch BIGINT NOT NULL,
  seen_seconds DOUBLE PRECISION NOT NULL
);
INSERT INTO sequences (name, jid, batch, seen_seconds) VALUES ('store', 1, 1, 0);

-- Counters are kept in the transaction that ends a job, as is money; what is not finished is counted
-- by the image in memory.
CREATE TABLE users (
  user_id BIGINT PRIMARY KEY,
  done BIGINT NOT NULL DEFAULT 0,
  error BIGINT NOT NULL DEFAULT 0,
  killed BIGINT NOT NULL DEFAULT 0,
  stalled BIGINT NOT NULL DEFAULT 0,
  core_seconds DOUBLE PRECISION NOT NULL DEFAULT 0,
  cost DOUBLE PRECISION NOT NULL DEFAULT 0,
  cost_cap DOUBLE PRECISION
);

-- Pickled functions up to 64 KiB are in `data`, larger ones in the blob. `links` counts batches.
CREATE TABLE functions (
  digest TEXT PRIMARY KEY,
  size_bytes BIGINT NOT NULL,
  blob TEXT,
  links BIGINT NOT NULL,
  data BYTEA
);

-- JobSpecs without what differs from call to call; equal ones are kept once, under a number made of
-- their digest. `links` counts batches.
CREATE TABLE specs (
  spec BIGINT PRIMARY KEY,
  links BIGINT NOT NULL,
  data TEXT NOT NULL
);

-- One row per call or map. `size` is null while a map's length is unknown. `open` counts its jobs
-- that are not finished. `state`: calls and complete maps are sealed; abandoned maps were given up.
-- `dependencies`: met, waiting or failed; jobs of a new part begin accordingly.
CREATE TABLE batches (
  batch BIGINT PRIMARY KEY,
  user_id BIGINT NOT NULL,
  kind TEXT NOT NULL,
  is_map BIGINT NOT NULL,
  spec BIGINT NOT NULL,
  function_digest TEXT NOT NULL,
  label TEXT,
  priority BIGINT NOT NULL,
  request_key TEXT,
  parent_jid BIGINT,
  depends_on TEXT,
  dependencies TEXT NOT NULL,
  size BIGINT,
  first_jid BIGINT,
  state TEXT NOT NULL,
  created_at DOUBLE PRECISION NOT NULL,
  heard_at DOUBLE PRECISION NOT NULL,
  finished_seen_seconds DOUBLE PRECISION,
  open BIGINT NOT NULL,
  waiting BIGINT NOT NULL DEFAULT 0,
  queued BIGINT NOT NULL DEFAULT 0,
  done BIGINT NOT NULL DEFAULT 0,
  error BIGINT NOT NULL DEFAULT 0,
  killed BIGINT NOT NULL DEFAULT 0,
  stalled BIGINT NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX batches_by_key ON batches (user_id, request_key) WHERE request_key IS NOT NULL;
CREATE INDEX batches_by_label ON batches (user_id, label, batch) WHERE label IS NOT NULL;
CREATE INDEX batches_unfinished ON batches (batch) WHERE open > 0 OR state = 'open';
CREATE INDEX batches_finished ON batches (finished_seen_seconds)
  WHERE finished_seen_seconds IS NOT NULL;
CREATE INDEX batches_keyed_finished ON batches (finished_seen_seconds)
  WHERE request_key IS NOT NULL AND finished_seen_seconds IS NOT NULL;

-- Jobs `first_jid` .. `first_jid + count - 1` = elements `first_index` .. of the batch. `arguments` is a
-- pack with one record each, empty for those in `part_files`. `links` counts its rows in `jobs`.
CREATE TABLE parts (
  first_jid BIGINT PRIMARY KEY,
  batch BIGINT NOT NULL,
  user_id BIGINT NOT NULL,
  part BIGINT NOT NULL,
  first_index BIGINT NOT NULL,
  count BIGINT NOT NULL,
  files BIGINT NOT NULL DEFAULT 0,
  links BIGINT NOT NULL,
  created_at DOUBLE PRECISION NOT NULL,
  arguments BYTEA NOT NULL
);
CREATE UNIQUE INDEX parts_by_number ON parts (batch, part);
CREATE INDEX parts_by_user ON parts (user_id, first_jid);

CREATE TABLE part_files (
  jid BIGINT PRIMARY KEY,
  user_id BIGINT NOT NULL,
  blob TEXT NOT NULL,
  size_bytes BIGINT NOT NULL,
  digest TEXT NOT NULL
);

-- One row per job. `reason` is null unless it is finished and not simply done; `message` holds the words
-- for reasons that are not the function's own. `result` names the row with what came back.
-- `losses`, `retries`, `fresh`: see jobs/lifecycle.py.
CREATE TABLE jobs (
  jid BIGINT PRIMARY KEY,
  batch BIGINT NOT NULL,
  user_id BIGINT NOT NULL,
  status TEXT NOT NULL,
  attempt BIGINT NOT NULL,
  result BIGINT,
  finished_at DOUBLE PRECISION,
  reason TEXT,
  message TEXT,
  losses BIGINT NOT NULL DEFAULT 0,
  retries BIGINT NOT NULL DEFAULT 0,
  fresh BIGINT NOT NULL DEFAULT 0,
  retry_at DOUBLE PRECISION
);
CREATE INDEX jobs_failed ON jobs (user_id, status, jid) WHERE status IN ('error', 'killed', 'stalled');

-- Work given to an engine (a lease is the number whose 16 hex digits the wire shows): elements `next_position` .. `count - 1` from `first_jid` on are still out.
-- A row is removed when none is left; what comes for an unknown lease is late and dropped.
CREATE TABLE leases (
  lease BIGINT PRIMARY KEY,
  batch BIGINT NOT NULL,
  user_id BIGINT NOT NULL,
  first_jid BIGINT NOT NULL,
  count BIGINT NOT NULL,
  next_position BIGINT NOT NULL DEFAULT 0,
  attempt BIGINT NOT NULL,
  node TEXT NOT NULL,
  slot TEXT NOT NULL,
  fresh BIGINT NOT NULL,
  leased_at DOUBLE PRECISION NOT NULL
);

-- What came back for elements first_position .. of a lease, in one record: `items` is the JSON
-- [[reason, started_at, runtime, cpu_user, cpu_system, size, extra], ...], `data` the bodies one after another.
-- `usage` is what the whole chunk used (JSON), on its last record. `links` counts the jobs that point
-- here (lost and retried attempts: none); `bytes` is what retention weighs. Leases are numbered in time, so their index grows at its end.
CREATE TABLE results (
  result BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
  user_id BIGINT NOT NULL,
  batch BIGINT NOT NULL,
  first_jid BIGINT NOT NULL,
  attempt BIGINT NOT NULL,
  node TEXT NOT NULL,
  lease BIGINT,
  first_position BIGINT NOT NULL,
  links BIGINT NOT NULL,
  bytes BIGINT NOT NULL,
  files BIGINT NOT NULL DEFAULT 0,
  unread BIGINT NOT NULL DEFAULT 1,
  seen_seconds DOUBLE PRECISION NOT NULL,
  finished_at DOUBLE PRECISION NOT NULL,
  usage TEXT,
  items TEXT NOT NULL,
  data BYTEA
);
CREATE INDEX results_by_age ON results (seen_seconds, bytes);
CREATE INDEX results_without_jobs ON results (batch) WHERE links = 0;
CREATE INDEX results_by_lease ON results (lease) WHERE lease IS NOT NULL;

-- Blobs that rows name. Those without links go after a grace.
CREATE TABLE blobs (
  blob TEXT PRIMARY KEY,
  size_bytes BIGINT NOT NULL,
  digest TEXT NOT NULL,
  links BIGINT NOT NULL,
  unlinked_at DOUBLE PRECISION
);
CREATE INDEX blobs_unlinked ON blobs (unlinked_at) WHERE links = 0;

-- Which jobs may answer for a later call with _cache=True.
CREATE TABLE cache_keys (
  jid BIGINT PRIMARY KEY,
  user_id BIGINT NOT NULL,
  digest TEXT NOT NULL
);
CREATE INDEX cache_keys_by_digest ON cache_keys (user_id, digest, jid);
