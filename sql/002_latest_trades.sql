-- Keeps the cost of "the latest 200" constant, however large the table grows. Ascending, although it is read
-- backwards: new trades have the latest timestamps, so they are appended to the index's last page.
CREATE INDEX IF NOT EXISTS trades_timestamp_idx ON trades (timestamp);
