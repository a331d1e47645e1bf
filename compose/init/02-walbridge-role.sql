-- The role and the publication of Walbridge, with no more rights than it needs. For psql, as an administrator, in the
-- database whose tables are streamed; may be run again:
--   POSTGRES_BRIDGE_PASSWORD_FILE=/path/to/secret psql -d app -f walbridge-role.sql
-- The password comes from that file, or from POSTGRES_BRIDGE_PASSWORD, so that it is in no command line. Without either
-- the role is made without one, for certificates or peer authentication.
\set ON_ERROR_STOP on
\set role 'walbridge'
\getenv password_file POSTGRES_BRIDGE_PASSWORD_FILE
\if :{?password_file}
  \set password `cat "$POSTGRES_BRIDGE_PASSWORD_FILE"`
\else
  \getenv password POSTGRES_BRIDGE_PASSWORD
\endif

-- a superuser's server log must not show the password, whatever log_statement says
\o /dev/null
SELECT set_config('log_statement', 'none', false), set_config('log_min_error_statement', 'panic', false)
FROM pg_roles WHERE rolname = current_user AND rolsuper;
\o

SELECT format('CREATE ROLE %I LOGIN', :'role') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
-- Amazon refuses this and has a role for it: GRANT rds_replication TO ... (docs/guides has other managed servers)
ALTER ROLE :"role" REPLICATION;
\if :{?password}
  ALTER ROLE :"role" PASSWORD :'password';
\endif

SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'role') \gexec
GRANT USAGE ON SCHEMA "public" TO "walbridge";
GRANT SELECT ON "public"."users" TO "walbridge";
GRANT SELECT ON "public"."orders" TO "walbridge";

SELECT 'CREATE PUBLICATION "cdc_pub" FOR TABLE "public"."users", "public"."orders"'
WHERE NOT EXISTS (SELECT FROM pg_publication WHERE pubname = 'cdc_pub') \gexec
-- more of them later: ALTER PUBLICATION ... ADD TABLE ...; GRANT SELECT ON ... TO ...; no restart is needed
