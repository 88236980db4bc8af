//! Which KV pages are free, which sequences hold which, and which are kept for their contents:
//! bookkeeping only, no device memory.
//!
//! A page holds the keys and values of `page_tokens` consecutive tokens, in every layer. The engine
//! takes pages as sequences grow and gives them back when they end or are preempted; the page numbers
//! reach the model as slots and block-table rows of a `Batch`.
//!
//! Full pages can be published: then any sequence that begins with the same tokens may hold them,
//! and they stay when nobody does, until their memory is needed. What a page holds depends on all
//! tokens before it and on the root of its chain (how positions were rotated), so a page is found by
//! the page published before it and its own tokens. The map compares both whole: a hash decides
//! nothing.
//!
//! Invariants, held here and tested below:
//! - A page is written by at most one sequence, and never once it is published: what is shared is
//!   full, and `slot` gives no slot in it. So nothing ever has to be copied.
//! - A page is either free, or held, or published and held by nobody.
//! - Whoever holds a published page holds all before it in its chain, and gives the last back first.
//!   So of the pages that nobody holds, given up oldest first, none outlives the one it is found by;
//!   but for what is published behind a page that was withdrawn, which nobody finds any more.

mod index;

use std::collections::BTreeMap;
use std::sync::Arc;

use index::{Index, Key, Parent};

/// What the first page of a chain depends on besides its tokens; chains of different roots share
/// nothing.
pub type Root = u64;

/// The pages of one sequence, in order. Not `Clone`: the pool counts who holds a page.
#[derive(Debug, Default)]
pub struct PageTable {
    pages: Vec<u32>,
    /// The first so many are published.
    num_published: usize,
}

impl PageTable {
    /// A sequence without pages.
    pub fn new() -> PageTable {
        PageTable::default()
    }

    /// Page numbers, in order of the tokens they hold.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }
}

/// What the pool knows of a page.
#[derive(Debug, Clone, Default)]
struct Page {
    /// Sequences that have it in their table.
    holders: u32,
    /// If it is published.
    key: Option<Arc<Key>>,
    /// When it was published, by the pool's clock: no other page ever has the same.
    serial: u64,
    /// When it was given back last, if it is published and nobody holds it.
    idle_since: u64,
}

/// What the prefix cache has of a sequence's tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Tokens at the beginning whose pages are published.
    pub tokens: usize,
    /// Of these pages, those that some sequence holds: to share them takes no free page.
    pub held_pages: usize,
}

/// The pages of an engine.
#[derive(Debug)]
pub struct PagePool {
    /// Used as a stack: the page freed last, still warm in the caches, is taken first.
    free: Vec<u32>,
    pages: Vec<Page>,
    index: Index,
    /// Published pages that nobody holds, by when they were given back.
    idle: BTreeMap<u64, u32>,
    clock: u64,
    evictions: u64,
    page_tokens: usize,
    /// Of each page, how many of its holders `returns` has seen.
    seen_holders: Vec<u32>,
}

impl PagePool {
    /// A pool of `num_pages` free pages of `page_tokens` tokens each.
    pub fn new(num_pages: u32, page_tokens: usize) -> PagePool {
        PagePool {
            free: (0..num_pages).rev().collect(),
            pages: vec![Page::default(); num_pages as usize],
            index: Index::default(),
            idle: BTreeMap::new(),
            clock: 0,
            evictions: 0,
            page_tokens,
            seen_holders: Vec::new(),
        }
    }

    /// Pages in the pool, free or not.
    pub fn num_pages(&self) -> usize {
        self.pages.len()
    }

    /// Pages nobody holds: all that a sequence can take.
    pub fn num_free(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Pages held by sequences; one that several hold counts once.
    pub fn num_used(&self) -> usize {
        self.num_pages() - self.num_free()
    }

    /// Published pages nobody holds.
    pub fn num_idle(&self) -> usize {
        self.idle.len()
    }

    /// Published pages that were given up so far, for their memory.
    pub fn num_evictions(&self) -> u64 {
        self.evictions
    }

    /// Makes `table` long enough for `num_tokens` tokens. `false`, with nothing taken, when too few
    /// pages are free.
    #[must_use]
    pub fn grow(&mut self, table: &mut PageTable, num_tokens: usize) -> bool {
        let wanted = pages_for(num_tokens, self.page_tokens).saturating_sub(table.pages.len());
        if wanted > self.num_free() {
            return false;
        }
        for _ in 0..wanted {
            let Some(page) = self.free.pop().or_else(|| self.evict()) else { return false };
            self.pages[page as usize].holders = 1;
            table.pages.push(page);
        }
        true
    }

    /// Takes all pages of `table` back. The published ones stay published.
    pub fn release(&mut self, table: &mut PageTable) {
        while let Some(page) = table.pages.pop() {
            self.let_go(page);
        }
        table.num_published = 0;
    }

    /// The slot to write the token at `position` to: `page * page_tokens + offset in page`. `None`
    /// when `table` does not reach that far, or the page is published.
    pub fn slot(&self, table: &PageTable, position: usize) -> Option<u32> {
        let index = position / self.page_tokens;
        let page = *table.pages.get(index).filter(|_| index >= table.num_published)? as usize;
        u32::try_from(page * self.page_tokens + position % self.page_tokens).ok()
    }

    /// How much of `tokens` is published under `root`, in whole pages.
    pub fn find(&mut self, root: Root, tokens: &[u32]) -> Found {
        let mut found = Found::default();
        let mut parent = Parent::Root(root);
        for tokens in tokens.chunks_exact(self.page_tokens) {
            let Some(page) = self.index.get(parent, tokens) else { break };
            let Page { holders, serial, .. } = self.pages[page as usize];
            found.tokens += self.page_tokens;
            found.held_pages += usize::from(holders > 0);
            parent = Parent::Page(serial);
        }
        found
    }

    /// Lets `table`, which is empty, share what `find` finds. Returns the number of tokens.
    pub fn share(&mut self, table: &mut PageTable, root: Root, tokens: &[u32]) -> usize {
        let mut parent = Parent::Root(root);
        for tokens in tokens.chunks_exact(self.page_tokens) {
            let Some(page) = self.index.get(parent, tokens) else { break };
            self.hold(page);
            table.pages.push(page);
            parent = Parent::Page(self.pages[page as usize].serial);
        }
        table.num_published = table.pages.len();
        table.num_published * self.page_tokens
    }

    /// Publishes the pages of `table` that `tokens` fill: what is in them will be `tokens` for ever.
    /// A page whose contents are published already is given back, and the published one shared.
    pub fn publish(&mut self, table: &mut PageTable, root: Root, tokens: &[u32]) {
        let full = tokens.chunks_exact(self.page_tokens).take(table.pages.len());
        for (index, tokens) in full.enumerate().skip(table.num_published) {
            let before = index.checked_sub(1).map(|at| &self.pages[table.pages[at] as usize]);
            let parent = match before {
                None => Parent::Root(root),
                Some(Page { key: Some(_), serial, .. }) => Parent::Page(*serial),
                Some(_) => return, // It was withdrawn: nobody finds what is behind it.
            };
            let own = table.pages[index];
            match self.index.get(parent, tokens) {
                Some(published) => {
                    self.hold(published);
                    table.pages[index] = published;
                    self.let_go(own);
                }
                None => {
                    self.clock += 1;
                    let page = &mut self.pages[own as usize];
                    page.key = Some(self.index.insert(parent, tokens, own));
                    page.serial = self.clock;
                }
            }
            table.num_published = index + 1;
        }
    }

    /// Takes the published pages of `table` out of the cache: nobody finds them any more, nor what is
    /// published behind them. Whoever holds them keeps them.
    pub fn withdraw(&mut self, table: &PageTable) {
        for &page in &table.pages {
            if let Some(key) = self.pages[page as usize].key.take() {
                self.index.remove(&key);
            }
        }
    }

    /// Begins to count, by `returns`, what comes back when tables are released one after the other.
    pub fn begin_returns(&mut self) {
        self.seen_holders.clear();
        self.seen_holders.resize(self.pages.len(), 0);
    }

    /// Of the pages that come back, leaves out those that `find` finds: whoever looks for them takes them.
    pub fn leave_out(&mut self, root: Root, tokens: &[u32]) {
        let mut parent = Parent::Root(root);
        for tokens in tokens.chunks_exact(self.page_tokens) {
            let Some(page) = self.index.get(parent, tokens) else { break };
            self.seen_holders[page as usize] = u32::MAX;
            parent = Parent::Page(self.pages[page as usize].serial);
        }
    }

    /// How many pages come back with `table`, after those that were counted since `begin_returns`: the
    /// ones that nobody else holds then.
    pub fn returns(&mut self, table: &PageTable) -> usize {
        let mut num_back = 0;
        for &page in &table.pages {
            let seen = &mut self.seen_holders[page as usize];
            *seen = seen.saturating_add(1);
            num_back += usize::from(*seen == self.pages[page as usize].holders);
        }
        num_back
    }

    fn hold(&mut self, number: u32) {
        let page = &mut self.pages[number as usize];
        if page.holders == 0 {
            self.idle.remove(&page.idle_since);
        }
        page.holders += 1;
    }

    fn let_go(&mut self, number: u32) {
        let page = &mut self.pages[number as usize];
        page.holders -= 1;
        if page.holders > 0 {
            return;
        }
        if page.key.is_none() {
            self.free.push(number);
            return;
        }
        self.clock += 1;
        page.idle_since = self.clock;
        self.idle.insert(self.clock, number);
    }

    /// Gives up the published page that nobody has held for longest.
    fn evict(&mut self) -> Option<u32> {
        let (_, number) = self.idle.pop_first()?;
        if let Some(key) = self.pages[number as usize].key.take() {
            self.index.remove(&key);
        }
        self.evictions += 1;
        Some(number)
    }
}

/// Pages that hold `num_tokens` tokens.
pub fn pages_for(num_tokens: usize, page_tokens: usize) -> usize {
    num_tokens.div_ceil(page_tokens)
}

#[cfg(test)]
mod tests;
