#!/usr/bin/env bash
# PostgreSQL's image runs this once, while its volume is still empty: each server gets a role and a database of its own,
# closed to the other's.
set -e

for name in mlflow prefect; do
    psql --no-psqlrc --set=ON_ERROR_STOP=1 --set=name="$name" --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<SQL
\getenv password ${name^^}_DB_PASSWORD
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
