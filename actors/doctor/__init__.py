"""`walbridge doctor`: the path from PostgreSQL to JetStream, checked before a bridge goes live or beside a running one."""
