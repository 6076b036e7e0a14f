//! A list of items, met one by one by a thread that may block.

use std::collections::VecDeque;
use std::pin::pin;

use backup_core::{CancellationToken, Error, Item, ItemList, Result};
use futures::StreamExt as _;
use futures::future::{Either, select};
use futures::stream::{BoxStream, ReadyChunks};
use tokio::runtime::Handle;

/// Items fetched at once.
const CHUNK: usize = 256;

/// The items of a list in its order.
pub(crate) struct Cursor {
    items: ReadyChunks<BoxStream<'static, Result<Item>>>,
    fetched: VecDeque<Item>,
    ended: bool,
    handle: Handle,
    cancelled: CancellationToken,
}

impl Cursor {
    pub(crate) fn new(
        items: BoxStream<'static, Result<Item>>,
        handle: Handle,
        cancelled: CancellationToken,
    ) -> Self {
        Self { items: items.ready_chunks(CHUNK), fetched: VecDeque::new(), ended: false, handle, cancelled }
    }

    /// The items of a list.
    pub(crate) fn of(list: &dyn ItemList, handle: Handle, cancelled: CancellationToken) -> Self {
        let items = {
            // A stream of items may begin tasks, and this need not be a thread of the runtime.
            let _within = handle.enter();
            list.stream()
        };
        Self::new(items, handle, cancelled)
    }

    /// The next item, which stays the next. Blocks: not for a thread of the runtime.
    pub(crate) fn peek(&mut self) -> Result<Option<&Item>> {
        while self.fetched.is_empty() && !self.ended {
            self.fetch()?;
        }
        Ok(self.fetched.front())
    }

    /// Takes the next item.
    pub(crate) fn take(&mut self) -> Result<Option<Item>> {
        self.peek()?;
        Ok(self.fetched.pop_front())
    }

    fn fetch(&mut self) -> Result<()> {
        let next = pin!(self.items.next());
        let cancelled = pin!(self.cancelled.cancelled());
        let chunk = match self.handle.block_on(select(next, cancelled)) {
            Either::Left((chunk, _)) => chunk,
            Either::Right(_) => return Err(Error::cancelled("read items")),
        };
        match chunk {
            None => self.ended = true,
            Some(chunk) => {
                for item in chunk {
                    match item {
                        Ok(item) => self.fetched.push_back(item),
                        Err(error) => {
                            self.ended = true;
                            return Err(error);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cursor").field("ended", &self.ended).finish_non_exhaustive()
    }
}
