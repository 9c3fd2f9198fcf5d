-- Makes "the latest 200" cost the same however large the table grows. Ascending, although it is read
-- backwards: new trades are the newest, so they are appended to the index's last page.
CREATE INDEX IF NOT EXISTS trades_timestamp_idx ON trades (timestamp);
