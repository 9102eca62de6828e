"""Keeps owner, options, rights and comments of PostgreSQL's views when they are replaced.

The server itself generates the statements that restore them, with quoted names.
"""

# ruff: noqa: S608 (the SQL here is put together from names of this file only)

from collections.abc import Sequence

import sqlalchemy as sa

from hpo.search.sql.views import VIEWS, VIEWS_VERSION

_GRANTEE = "CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END"
_OPTION = "CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END"
_VIEWS = "WITH views AS (SELECT c.* FROM pg_class c, unnest(CAST(:names AS text[])) n WHERE c.oid = to_regclass(n))"
_KEPT = f"""{_VIEWS}, columns AS (
    SELECT v.relname, v.relowner, c.* FROM views v JOIN pg_attribute c ON c.attrelid = v.oid
), comments AS (
    SELECT v.relname, d.objsubid AS place,
        CASE WHEN v.relname = 'trial_results' AND d.objsubid = 0 THEN ltrim(
            trim(regexp_replace(d.description, 'hpo views [0-9]+', '')) || ' hpo views {VIEWS_VERSION}'
        ) ELSE d.description END AS said
    FROM views v JOIN pg_description d ON d.objoid = v.oid AND d.classoid = 'pg_class'::regclass
)
SELECT statement FROM (
    SELECT 1 AS turn, format('ALTER VIEW %I OWNER TO %I', relname, pg_get_userbyid(relowner)) AS statement
        FROM views WHERE pg_get_userbyid(relowner) <> current_user
    UNION ALL SELECT 2, format('ALTER VIEW %I SET (%s)', relname, array_to_string(reloptions, ', '))
        FROM views WHERE reloptions IS NOT NULL
    UNION ALL SELECT 2, format('GRANT %s ON %I TO %s%s', a.privilege_type, relname, {_GRANTEE}, {_OPTION})
        FROM views, aclexplode(relacl) a WHERE a.grantee <> relowner
    UNION ALL SELECT 2, format('GRANT %s (%I) ON %I TO %s%s', a.privilege_type, attname, relname, {_GRANTEE}, {_OPTION})
        FROM columns, aclexplode(attacl) a WHERE a.grantee <> relowner
    UNION ALL SELECT 2, format('COMMENT ON VIEW %I IS %L', relname, said)
        FROM comments WHERE place = 0
    UNION ALL SELECT 2, format('COMMENT ON COLUMN %I.%I IS %L', relname, attname, said)
        FROM comments JOIN columns USING (relname) WHERE place = attnum
) statements ORDER BY turn"""
_GIVEN_BY_DEFAULT = f"""{_VIEWS} SELECT DISTINCT format('REVOKE ALL ON %I FROM %s', relname, {_GRANTEE})
    FROM views, aclexplode(relacl) a WHERE a.grantee <> relowner"""


def existing_views(connection: sa.Connection) -> list[str]:
    """The names of hpo's views that exist."""
    return _select(connection, f"{_VIEWS} SELECT CAST(relname AS text) FROM views", VIEWS)


def read_kept(connection: sa.Connection) -> list[str]:
    """The statements that give new views what the current ones have. All rights are then granted by the owner; the
    version in the comment becomes the current one.
    """
    return _select(connection, _KEPT, VIEWS)


def restore(connection: sa.Connection, existed: Sequence[str], kept: Sequence[str]) -> None:
    """Executes these statements, after revoking what ALTER DEFAULT PRIVILEGES has granted on views that existed."""
    for statement in [*_select(connection, _GIVEN_BY_DEFAULT, existed), *kept]:
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def _select(connection: sa.Connection, query: str, names: Sequence[str]) -> list[str]:
    return list(connection.execute(sa.text(query), {"names": list(names)}).scalars())
