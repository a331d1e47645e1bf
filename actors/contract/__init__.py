"""What the bridge and its readers agree on, as code: subjects, tokens, ids, bodies, records, rules of reading. No I/O."""
