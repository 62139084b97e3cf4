"""Raw logs as published to impression rows with histories, a schema and a configuration.

Queries are written once, in Ibis, which only compiles them: DuckDB (in this process) or PySpark
runs the SQL.
"""
