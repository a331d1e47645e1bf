-- For postgres_exporter: reads statistics, no table.
\set ON_ERROR_STOP on
\set password `cat "$POSTGRES_MONITOR_PASSWORD_FILE"`
\o /dev/null
SELECT set_config('log_statement', 'none', false), set_config('log_min_error_statement', 'panic', false);
\o
CREATE ROLE walbridge_monitor LOGIN PASSWORD :'password';
GRANT pg_monitor TO walbridge_monitor;
