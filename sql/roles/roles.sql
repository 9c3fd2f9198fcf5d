-- Three roles, each for one job, for a database that is not on a laptop. Run by an administrator; repeating it is safe:
--     psql "$DATABASE_URL" -f sql/001_trades.sql -f sql/002_latest_trades.sql -f sql/roles/roles.sql
-- Then give each script its own login:
--     psql "$DATABASE_URL" -c "CREATE USER consumer PASSWORD '...' IN ROLE trades_writer"
DO $$
DECLARE
    name TEXT;
BEGIN
    FOREACH name IN ARRAY ARRAY['trades_writer', 'trades_reader', 'trades_pruner'] LOOP
        IF to_regrole(name) IS NULL THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), name);
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', name);
        EXECUTE format('REVOKE ALL ON trades FROM %I', name);
    END LOOP;
    -- consumer.py and pipeline.maintenance.retention compare the table with a temporary one (sql/temporary/), where the
    -- consumer also holds redelivered trades while it finds out which are new.
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO trades_writer, trades_pruner', current_database());
END $$;

GRANT INSERT ON trades TO trades_writer;          -- consumer.py
GRANT SELECT ON trades TO trades_reader;          -- dashboard.py
GRANT SELECT, DELETE ON trades TO trades_pruner;  -- python -m pipeline.maintenance.retention
