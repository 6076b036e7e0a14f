//! The tar format, as we write it: POSIX.1-2001 pax interchange format (`pax`, `ustar` headers with extended headers).
//!
//! One directory entry is one *member*: an optional extended header (type `x`: header block, records, padding), a
//! header block, the content and its padding to 512 bytes. An archive ends with two zero blocks. The bytes depend
//! on nothing but what is archived: no process id, no access time, no time of the run.
//!
//! | what | how |
//! |---|---|
//! | name | `name`, or `prefix` + `/` + `name`; else record `path`. Raw bytes, UTF-8 or not. A directory ends with `/`; the nameless root is `./` |
//! | link | `linkname`, else record `linkpath`. Type `2` symbolic; type `1` hard, naming the member that carries the content, possibly in an earlier archive of the same backup |
//! | size, uid, gid, uname, gname | in the header where they fit, else the record of that name |
//! | mtime | seconds in the header where they fit; record `mtime` with up to nine decimals where they have a fraction or do not fit |
//! | xattrs | record `SCHILY.xattr.<name>`, value raw, `%` and `=` in the name as `%25` and `%3D` (GNU tar, star, libarchive) |
//! | POSIX ACLs | records `SCHILY.acl.access`, `SCHILY.acl.default`: text with numeric ids, see [`crate::acl`]. An ACL that text cannot carry is stored as an xattr |
//! | sparse files | GNU sparse 1.0: records `GNU.sparse.major=1`, `GNU.sparse.minor=0`, `GNU.sparse.name`, `GNU.sparse.realsize`; member name `GNUSparseFile.0/…`; the content begins with the map (decimal lines: count, then offset and size of each run, padded to 512) |
//! | FIFOs | type `6` |
//!
//! Sources: IEEE Std 1003.1-2017 `pax`, "ustar Interchange Format" and "pax Extended Header"; the GNU tar manual,
//! "Sparse Formats: PAX Format, Version 1.0"; `xheader.c` and `xattrs.c` of GNU tar 1.34.

pub(crate) mod header;
pub(crate) mod pax;
pub(crate) mod read;
pub(crate) mod sparse;
pub(crate) mod write;
