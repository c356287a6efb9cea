"""What is known: units, errors, records, statistics, the store, tables and device profiles."""
