/** Shapes of tables in a store, and kinds of PostgreSQL's types by their names. */

/**
 * A table of the store: the source's table, the local name (the schema is empty in SQLite), the columns and their local types.
 * @typedef {object} TableShape
 * @property {string} token
 * @property {string} schema
 * @property {string} table
 * @property {readonly [schema: string, name: string]} local
 * @property {import("../contract/records.js").Column[]} columns
 * @property {string[]} localTypes
 * @property {number} relationId The source table's OID.
 * @property {boolean} keyed Whether the local table has the source's primary key.
 */

export const INTEGERS = new Set(["smallint", "integer", "bigint", "oid"]);
export const FLOATS = new Set(["real", "double precision"]);
export const DOCUMENTS = new Set(["json", "jsonb"]);
export const BUILTIN = new Set(
  (
    '"char",aclitem,bigint,bit,bit varying,boolean,box,bpchar,bytea,character,character varying,cid,cidr,circle,date,datemultirange,' +
    "daterange,double precision,gtsvector,inet,int2vector,int4multirange,int4range,int8multirange,int8range,integer,interval,json," +
    "jsonb,jsonpath,line,lseg,macaddr,macaddr8,money,name,numeric,nummultirange,numrange,oid,oidvector,path,pg_lsn,point,polygon," +
    "real,record,refcursor,regclass,regcollation,regconfig,regdictionary,regnamespace,regoper,regoperator,regproc,regprocedure," +
    "regrole,regtype,smallint,text,tid,time with time zone,time without time zone,timestamp with time zone," +
    "timestamp without time zone,tsmultirange,tsquery,tsrange,tstzmultirange,tstzrange,tsvector,txid_snapshot,uuid,xid,xid8,xml"
  ).split(","),
);

/** The type's name without its modifier: `timestamp(3) with time zone` becomes `timestamp with time zone`. @param {string} words */
export function baseWords(words) {
  const found = words.startsWith('"') ? null : /^([^(]*)\(([^)]*)\)?(.*)$/.exec(words);
  return found === null ? words : (found[1] + found[3]).trim();
}

/** The name of an array's element type; null for a type that is no array. @param {string} words */
export const elementWords = (words) => (words.endsWith("[]") ? words.slice(0, -2) : null);

/** Columns of the primary key; none when rows are identified by all columns. @param {TableShape} shape */
export const keyOf = (shape) => (shape.keyed ? shape.columns.filter(({ pk }) => pk).map(({ name }) => name) : []);

/**
 * The columns, with their types, that `mine` lacks before rows of `other` fit; null when more must change.
 * @param {TableShape} mine @param {TableShape} other @returns {Map<string, string> | null}
 */
export function lacks(mine, other) {
  const sign = (/** @type {TableShape} */ shape) =>
    new Map(shape.columns.map((column, i) => [JSON.stringify([column, shape.localTypes[i]]), [column.name, shape.localTypes[i]]]));
  const [held, wanted] = [sign(mine), sign(other)];
  const isSameKey = mine.keyed === other.keyed && keyOf(mine).join("\0") === keyOf(other).join("\0");
  if (held.size === 0 || !isSameKey || ![...held.keys()].every((one) => wanted.has(one))) return null;
  return new Map([...wanted].filter(([one]) => !held.has(one)).map(([, [name, type]]) => [name, type]));
}

/** As the mirror's own table `tables` has them. @param {readonly import("../contract/records.js").Column[]} columns */
export const encodeColumns = (columns) => JSON.stringify(columns.map(({ name, type, pk, base }) => [name, type, pk, base]));
/** @param {string} text @returns {import("../contract/records.js").Column[]} */
export const decodeColumns = (text) =>
  JSON.parse(text).map((/** @type {[string, string, boolean | null, string?]} */ [name, type, pk, base = ""]) => ({ name, type, pk, base }));
