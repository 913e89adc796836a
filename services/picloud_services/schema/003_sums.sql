-- CRC-32 of payloads that are kept in rows (see jobs/sums.py): a disk may damage what it holds, and a page
-- of the store has no sum of its own. Null: of before.

ALTER TABLE parts ADD COLUMN arguments_sum BIGINT;
ALTER TABLE results ADD COLUMN data_sum BIGINT;
