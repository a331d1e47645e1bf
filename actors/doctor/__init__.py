"""`walbridge doctor` checks the path from PostgreSQL to JetStream before a bridge goes live, or beside a running one."""
