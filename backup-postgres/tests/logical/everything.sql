-- A database with something of everything that pg_dump knows, filled with rows that are hard to carry.
CREATE SCHEMA "Größe x";
CREATE SCHEMA inventory;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s \ great');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE float_range AS RANGE (subtype = float8, subtype_diff = float8mi);

CREATE TABLE kinds (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  c_bool boolean, c_bytea bytea, c_char "char", c_bpchar char(5), c_varchar varchar(40), c_text text, c_name name,
  c_int2 smallint, c_int4 integer, c_int8 bigint, c_float4 real, c_float8 double precision, c_numeric numeric,
  c_money money, c_date date, c_time time, c_timetz timetz, c_timestamp timestamp, c_timestamptz timestamptz,
  c_interval interval, c_uuid uuid, c_json json, c_jsonb jsonb, c_jsonpath jsonpath, c_xml xml,
  c_inet inet, c_cidr cidr, c_macaddr macaddr, c_macaddr8 macaddr8, c_bit bit(5), c_varbit bit varying,
  c_point point, c_line line, c_lseg lseg, c_box box, c_path path, c_polygon polygon, c_circle circle,
  c_tsvector tsvector, c_tsquery tsquery, c_oid oid, c_regclass regclass, c_regtype regtype, c_regrole regrole,
  c_tid tid, c_xid xid, c_xid8 xid8, c_cid cid, c_lsn pg_lsn, c_snapshot pg_snapshot, c_oidvector oidvector,
  c_int2vector int2vector, c_aclitem aclitem, c_refcursor refcursor,
  c_int4range int4range, c_numrange numrange, c_tsrange tsrange, c_tstzrange tstzrange, c_daterange daterange,
  c_int8range int8range, c_multirange int4multirange, c_floatrange float_range,
  c_ints int[], c_texts text[][], c_mood mood, c_moods mood[], c_pair pair, c_pairs pair[], c_positive positive,
  c_generated text GENERATED ALWAYS AS (c_text || '!') STORED
);
INSERT INTO kinds (c_text) VALUES (NULL), (''), (E'\\.'), (E'\\N'), (E'tab\tnewline\nreturn\rback\\slash\b\f\v'), ('ünïcödé 🐘'),
  (E'two\n\\.\nlines'), ('same'), ('same'), ('same');
INSERT INTO kinds (c_bool, c_bytea, c_char, c_bpchar, c_varchar, c_text, c_name, c_int2, c_int4, c_int8, c_float4,
  c_float8, c_numeric, c_money, c_date, c_time, c_timetz, c_timestamp, c_timestamptz, c_interval, c_uuid, c_json, c_jsonb,
  c_jsonpath, c_inet, c_cidr, c_macaddr, c_macaddr8, c_bit, c_varbit, c_point, c_line, c_lseg, c_box, c_path,
  c_polygon, c_circle, c_tsvector, c_tsquery, c_oid, c_regclass, c_regtype, c_regrole, c_tid, c_xid, c_xid8, c_cid, c_lsn,
  c_snapshot, c_oidvector, c_int2vector, c_aclitem, c_refcursor, c_int4range, c_numrange, c_tsrange, c_tstzrange,
  c_daterange, c_int8range, c_multirange, c_floatrange, c_ints, c_texts, c_mood, c_moods, c_pair, c_pairs, c_positive)
VALUES (true, (SELECT string_agg(set_byte('\x00', 0, i), '' ORDER BY i) FROM generate_series(0, 255) i), 'x', 'ab', 'v',
  't', 'n', -32768, -2147483648, -9223372036854775808, 'NaN', '-Infinity', 'NaN', '12.34', '-infinity', '24:00', '01:02:03.4+05',
  'infinity', '2026-03-29 02:30:00.123456+02', '-1 year 2 mons -3 days 04:05:06.789', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
  '{"a":  1, "a": 2}', '{"b": [1, null, "x\\u0041"]}', '$.a[*] ? (@ > 1)', '192.168.1.5/24', '10.0.0.0/8',
  '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', B'10101', B'1', '(1,2)', '{1,2,3}', '[(0,0),(1,1)]', '(1,1),(0,0)',
  '[(0,0),(1,1),(2,0)]', '((0,0),(1,1),(2,0))', '<(1,2),3>', 'a fat:2 cat:3A', 'fat & !rat', 4294967295, 'pg_class', 'int4',
  'postgres', '(42,7)', '123', '456', '7', '16/B374D848', '10:20:10,14,15', '1 2 3', '4 5', 'postgres=r/postgres', 'cursor',
  '[1,5)', '(,1.5]', '[2026-01-01,infinity)', 'empty', '[2026-01-01,2026-02-01)', '(,)', '{[1,3),[5,9)}', '[1.5,NaN)',
  '{1,NULL,3}', '{{a,"b c"},{"d\"e",NULL}}', 'it''s \ great', '{sad,"it''s \\ great"}', '(1,"x,y")', '{"(1,a)","(,)"}', 5);
INSERT INTO kinds (c_float4, c_float8, c_numeric) VALUES (1e-45, 4.9e-324, 0.1), ('Infinity', 1.7976931348623157e308, 1e1000),
  (0.1, 0.1, 'Infinity'), ('-0', '-0', -0.0000000001);

CREATE TABLE inventory.owned (a int);
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
INSERT INTO no_columns DEFAULT VALUES;
CREATE TABLE only_generated (g int GENERATED ALWAYS AS (1) STORED);
INSERT INTO only_generated DEFAULT VALUES;
CREATE TABLE empty_one (a int);
CREATE TABLE dropped (a int, gone text, b text);
INSERT INTO dropped SELECT i, 'x', 'y' || i FROM generate_series(1, 5) i;
ALTER TABLE dropped DROP COLUMN gone;

CREATE TABLE "Größe x"."Täble ""q"" a.b/c" ("Ünï %" serial PRIMARY KEY, "select" text UNIQUE, CHECK ("select" <> ';'));
INSERT INTO "Größe x"."Täble ""q"" a.b/c" ("select") SELECT 'v' || i FROM generate_series(1, 20) i;
COMMENT ON TABLE "Größe x"."Täble ""q"" a.b/c" IS 'it''s; a -- comment';

CREATE TABLE measurements (at date NOT NULL, value int) PARTITION BY RANGE (at);
CREATE TABLE measurements_2025 PARTITION OF measurements FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE measurements_2026 PARTITION OF measurements FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY LIST (value);
CREATE TABLE measurements_2026_odd PARTITION OF measurements_2026 FOR VALUES IN (1, 3, 5);
CREATE TABLE measurements_rest PARTITION OF measurements DEFAULT;
ALTER TABLE measurements ADD PRIMARY KEY (at, value);
CREATE INDEX ON measurements (value);
INSERT INTO measurements VALUES ('2025-05-05', 1), ('2026-05-05', 3), ('2030-01-01', 9);
CREATE TABLE parent (a int, b text);
CREATE TABLE child (c int) INHERITS (parent);
INSERT INTO parent VALUES (1, 'p');
INSERT INTO child VALUES (2, 'c', 3);

CREATE UNLOGGED TABLE cache (k text PRIMARY KEY, v text);
INSERT INTO cache VALUES ('a', 'b');
CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL);
INSERT INTO accounts SELECT i, 100 FROM generate_series(1, 50) i;
CREATE TABLE orders (id serial PRIMARY KEY, account int NOT NULL REFERENCES accounts ON DELETE CASCADE, parent int REFERENCES orders);
INSERT INTO orders (account) SELECT 1 + i % 50 FROM generate_series(1, 100) i;
CREATE INDEX orders_by_account ON orders (account) WHERE account > 10;
CREATE INDEX ON orders ((account * 2));
CLUSTER orders USING orders_pkey;
ALTER TABLE orders REPLICA IDENTITY FULL;
CREATE STATISTICS orders_stats ON id, account FROM orders;
CREATE VIEW rich AS SELECT * FROM accounts WHERE balance > 50;
CREATE MATERIALIZED VIEW totals AS SELECT account, count(*) AS n FROM orders GROUP BY 1;
CREATE UNIQUE INDEX ON totals (account);
CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql AS $_$ BEGIN NEW.balance := NEW.balance + 0; -- ; '
 RETURN NEW; END $_$;
CREATE TRIGGER bump BEFORE UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION bump();
CREATE FUNCTION atomic(x int) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN x > 1 THEN 1 ELSE 2 END; SELECT x; END;
CREATE PROCEDURE noop() LANGUAGE sql AS 'SELECT 1; SELECT 2';
CREATE RULE no_delete AS ON DELETE TO parent DO INSTEAD (SELECT 1; SELECT 2);
CREATE SEQUENCE lonely START 7 INCREMENT -3 MINVALUE -100 MAXVALUE 100 CYCLE;
SELECT nextval('lonely'), nextval('lonely');
CREATE SEQUENCE untouched;
ALTER TABLE accounts ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON accounts USING (id > 0);
CREATE PUBLICATION pub FOR TABLE accounts;
CREATE AGGREGATE my_sum (int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
CREATE COLLATION mine (LOCALE = 'C');
CREATE FOREIGN DATA WRAPPER nothing;
CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
CREATE FOREIGN TABLE far (a int) SERVER nowhere;
CREATE FUNCTION event_noop() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$;
CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION event_noop();
ALTER DEFAULT PRIVILEGES IN SCHEMA inventory GRANT SELECT ON TABLES TO reader;
GRANT SELECT ON kinds TO reader;
GRANT SELECT (balance), UPDATE (balance) ON accounts TO reader WITH GRANT OPTION;
ALTER TABLE inventory.owned OWNER TO reader;
SELECT lo_create(4000000001);
SELECT lo_from_bytea(70001, (SELECT string_agg(decode(md5(i::text), 'hex'), '' ORDER BY i) FROM generate_series(1, 20000) i));
SELECT lo_from_bytea(70002, '\x00ff5c0a');
COMMENT ON LARGE OBJECT 70001 IS 'a large one';
GRANT SELECT ON LARGE OBJECT 70002 TO reader;
ALTER LARGE OBJECT 70002 OWNER TO reader;
