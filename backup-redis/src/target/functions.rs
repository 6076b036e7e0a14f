//! Libraries of functions, which belong to the server and not to a database.

use backup_core::{Error, ErrorKind, Proof, Result};
use bytes::Bytes;

use super::batch::seal;
use crate::connect::Connection;
use crate::rdb::length::write_string;
use crate::resp::Reply;

const FUNCTIONS: &str = "restore Redis functions";
/// Before a library's source in the payload of `FUNCTION RESTORE`, as in an RDB.
const OPCODE: u8 = 245;

/// The sources of the server's libraries; `None` when it has no functions at all (before 7.0).
pub(crate) async fn present(connection: &mut Connection) -> Result<Option<Vec<Bytes>>> {
    match connection.command(&["FUNCTION", "LIST", "WITHCODE"]).await? {
        Reply::Error(e) if e.is_unknown_command() => Ok(None),
        Reply::Error(e) => Err(e.into_error(FUNCTIONS, ErrorKind::TargetFailed)),
        libraries => Ok(Some(
            libraries
                .array()
                .iter()
                .filter_map(|library| {
                    library.array().chunks_exact(2).find_map(|pair| match pair {
                        [name, Reply::Bulk(code)] if name.text() == Some("library_code") => {
                            Some(code.clone())
                        }
                        _ => None,
                    })
                })
                .collect(),
        )),
    }
}

/// The proof of libraries.
pub(crate) fn proof<B: AsRef<[u8]>>(libraries: &[B]) -> Proof {
    let mut proof = Proof::empty();
    for library in libraries {
        proof.add([library.as_ref()]);
    }
    proof
}

/// The name a library's source gives itself: `#!lua name=mylib`.
pub(crate) fn name(library: &[u8]) -> Option<&[u8]> {
    let line = library.split(|&b| b == b'\n').next()?;
    line.split(u8::is_ascii_whitespace).find_map(|word| word.strip_prefix(b"name="))
}

/// Loads libraries. `policy` is what happens to those there are: `FLUSH`, `APPEND` or `REPLACE`.
pub(crate) async fn load<B: AsRef<[u8]>>(
    connection: &mut Connection,
    libraries: &[B],
    version: u32,
    policy: &str,
) -> Result<()> {
    let mut payload = Vec::new();
    for library in libraries {
        payload.push(OPCODE);
        write_string(&mut payload, library.as_ref());
    }
    seal(&mut payload, 0, version);
    match connection.command(&[b"FUNCTION", &b"RESTORE"[..], &payload, policy.as_bytes()]).await? {
        Reply::Error(e) if e.is_unknown_command() => Err(Error::new(ErrorKind::Unsupported, FUNCTIONS)
            .message(
                "this server has no functions (they came with 7.0): select `db*` to restore without them",
            )
            .caused_by(e)),
        Reply::Error(e) => Err(e.into_error(FUNCTIONS, ErrorKind::TargetFailed)),
        _ => Ok(()),
    }
}
