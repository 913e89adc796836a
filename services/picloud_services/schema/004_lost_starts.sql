-- Starts in a row that were lost before anything of the job ran (see jobs/lifecycle.py).

ALTER TABLE jobs ADD COLUMN lost_starts BIGINT NOT NULL DEFAULT 0;
