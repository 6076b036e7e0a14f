//! [`Operation`].

/// One call of a sink, its writers or its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// [`Sink::create`](backup_core::Sink::create).
    Create,
    /// [`SinkWriter::write`](backup_core::SinkWriter::write).
    Write,
    /// [`SinkWriter::finish`](backup_core::SinkWriter::finish).
    Finish,
    /// [`SinkWriter::abort`](backup_core::SinkWriter::abort).
    Abort,
    /// [`Sink::open`](backup_core::Sink::open).
    Open,
    /// One poll for a chunk of an opened object, the one that finds the end included.
    Read,
    /// [`Sink::head`](backup_core::Sink::head).
    Head,
    /// One poll for an entry of [`Sink::list`](backup_core::Sink::list), the one that finds the end included.
    List,
    /// [`Sink::delete`](backup_core::Sink::delete).
    Delete,
    /// [`Sink::probe`](backup_core::Sink::probe).
    Probe,
    /// [`Sink::space`](backup_core::Sink::space).
    Space,
    /// [`Sink::sweep`](backup_core::Sink::sweep).
    Sweep,
    /// [`Sink::thaw`](backup_core::Sink::thaw).
    Thaw,
    /// [`Sink::change_class`](backup_core::Sink::change_class).
    ChangeClass,
    /// [`Sink::copy_from`](backup_core::Sink::copy_from).
    CopyFrom,
}
