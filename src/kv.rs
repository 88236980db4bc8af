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
//!   So of the pages that nobody holds, given up oldest first, none outlives the one it is found by.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

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

/// What a published page is found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    parent: Parent,
    tokens: Vec<u32>,
}

/// What comes before a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Parent {
    Root(Root),
    Page(u32),
}

/// What the pool knows of a page.
#[derive(Debug, Clone, Default)]
struct Page {
    /// Sequences that have it in their table.
    holders: u32,
    /// If it is published.
    key: Option<Arc<Key>>,
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
    index: HashMap<Arc<Key>, u32>,
    /// Published pages that nobody holds, by when they were given back.
    idle: BTreeMap<u64, u32>,
    clock: u64,
    evictions: u64,
    page_tokens: usize,
    /// A key to look up with: its memory is used again.
    probe: Key,
}

impl PagePool {
    /// A pool of `num_pages` free pages of `page_tokens` tokens each.
    pub fn new(num_pages: u32, page_tokens: usize) -> PagePool {
        PagePool {
            free: (0..num_pages).rev().collect(),
            pages: vec![Page::default(); num_pages as usize],
            index: HashMap::new(),
            idle: BTreeMap::new(),
            clock: 0,
            evictions: 0,
            page_tokens,
            probe: Key { parent: Parent::Root(0), tokens: Vec::new() },
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
            let Some(page) = self.look_up(parent, tokens) else { break };
            found.tokens += self.page_tokens;
            found.held_pages += usize::from(self.pages[page as usize].holders > 0);
            parent = Parent::Page(page);
        }
        found
    }

    /// Lets `table`, which is empty, share what `find` finds. Returns the number of tokens.
    pub fn share(&mut self, table: &mut PageTable, root: Root, tokens: &[u32]) -> usize {
        let mut parent = Parent::Root(root);
        for tokens in tokens.chunks_exact(self.page_tokens) {
            let Some(page) = self.look_up(parent, tokens) else { break };
            self.hold(page);
            table.pages.push(page);
            parent = Parent::Page(page);
        }
        table.num_published = table.pages.len();
        table.num_published * self.page_tokens
    }

    /// Publishes the pages of `table` that `tokens` fill: what is in them will be `tokens` for ever.
    /// A page whose contents are published already is given back, and the published one shared.
    pub fn publish(&mut self, table: &mut PageTable, root: Root, tokens: &[u32]) {
        let full = tokens.chunks_exact(self.page_tokens).take(table.pages.len());
        for (index, tokens) in full.enumerate().skip(table.num_published) {
            let parent = match index.checked_sub(1) {
                None => Parent::Root(root),
                Some(before) => Parent::Page(table.pages[before]),
            };
            let own = table.pages[index];
            match self.look_up(parent, tokens) {
                Some(published) => {
                    self.hold(published);
                    table.pages[index] = published;
                    self.let_go(own);
                }
                None => {
                    let key = Arc::new(Key { parent, tokens: tokens.to_vec() });
                    self.index.insert(Arc::clone(&key), own);
                    self.pages[own as usize].key = Some(key);
                }
            }
            table.num_published = index + 1;
        }
    }

    fn look_up(&mut self, parent: Parent, tokens: &[u32]) -> Option<u32> {
        self.probe.parent = parent;
        self.probe.tokens.clear();
        self.probe.tokens.extend_from_slice(tokens);
        self.index.get(&self.probe).copied()
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_sequence_takes_only_the_pages_it_needs() {
        let mut pool = PagePool::new(4, 16);
        let mut table = PageTable::new();
        assert!(pool.grow(&mut table, 0) && table.pages().is_empty());
        assert!(pool.grow(&mut table, 16));
        assert_eq!((table.pages(), pool.num_used()), (&[0][..], 1));
        assert!(pool.grow(&mut table, 17));
        assert_eq!((table.pages(), pool.slot(&table, 16)), (&[0, 1][..], Some(16)));
        assert_eq!(pool.slot(&table, 32), None);
    }

    #[test]
    fn too_few_pages_take_nothing() {
        let mut pool = PagePool::new(2, 16);
        let mut table = PageTable::new();
        assert!(!pool.grow(&mut table, 33));
        assert_eq!((pool.num_free(), table.pages().len()), (2, 0));
        assert!(pool.grow(&mut table, 32));
        pool.release(&mut table);
        assert_eq!((pool.num_free(), table.pages().len()), (2, 0));
    }

    /// What a slot holds: keys that depend on the root and on all tokens up to it.
    type Cell = (Root, Vec<u32>);

    /// A sequence of the test below: its computed tokens and its pages.
    #[derive(Default)]
    struct Life {
        root: Root,
        tokens: Vec<u32>,
        table: PageTable,
    }

    impl Life {
        /// A new sequence over the cache: one of few prompts, so that they share.
        fn begin(&mut self, pool: &mut PagePool, prompt: u32) {
            pool.release(&mut self.table);
            self.root = Root::from(prompt % 2);
            self.tokens = (0..20 * 4).map(|at| (at * (prompt % 4)) / 50).collect();
            self.tokens.truncate(pool.share(&mut self.table, self.root, &self.tokens));
        }

        /// Computes `count` more tokens: writes to slots, as the model does.
        fn advance(&mut self, pool: &mut PagePool, cells: &mut [Option<Cell>], count: usize) {
            let first = self.tokens.len();
            if !pool.grow(&mut self.table, first + count) {
                return;
            }
            for position in first..first + count {
                self.tokens.push((position as u32 * self.root as u32) / 50);
                let slot = pool.slot(&self.table, position).unwrap() as usize;
                let page = self.table.pages()[position / 4];
                assert_eq!(pool.pages[page as usize].holders, 1, "a second reader or writer");
                cells[slot] = Some((self.root, self.tokens.clone()));
            }
        }

        /// All that its pages hold is its own past.
        fn check(&self, pool: &PagePool, cells: &[Option<Cell>]) {
            for position in 0..self.tokens.len() {
                let slot = self.table.pages()[position / 4] as usize * 4 + position % 4;
                let past = (self.root, self.tokens[..=position].to_vec());
                assert_eq!(cells[slot].as_ref(), Some(&past));
            }
            assert!(self.table.num_published <= self.tokens.len() / pool.page_tokens);
        }
    }

    /// The invariants above, by counting.
    fn check_pool(pool: &PagePool, lives: &[Life]) {
        let mut holders = vec![0; pool.num_pages()];
        for life in lives {
            life.table.pages().iter().for_each(|page| holders[*page as usize] += 1);
            for (index, page) in life.table.pages().iter().enumerate() {
                let is_published = index < life.table.num_published;
                assert_eq!(pool.pages[*page as usize].key.is_some(), is_published);
            }
        }
        let mut seen = vec![0; pool.num_pages()];
        pool.free.iter().chain(pool.idle.values()).for_each(|page| seen[*page as usize] += 1);
        for (number, page) in pool.pages.iter().enumerate() {
            assert_eq!(page.holders, holders[number]);
            assert_eq!(seen[number], u32::from(page.holders == 0), "free and held, or neither");
        }
        for (key, number) in &pool.index {
            assert_eq!(pool.pages[*number as usize].key.as_ref(), Some(key));
            if let Parent::Page(parent) = key.parent {
                let (parent, child) = (&pool.pages[parent as usize], &pool.pages[*number as usize]);
                assert!(parent.key.is_some(), "reachable by a page that is gone");
                assert!(parent.holders >= child.holders);
                assert!(parent.holders > 0 || parent.idle_since > child.idle_since, "goes first");
            }
        }
    }

    proptest! {
        #[test]
        fn pages_are_shared_and_never_mixed_up(
            steps in proptest::collection::vec((0usize..5, 0u32..40), 1..200),
        ) {
            let mut pool = PagePool::new(24, 4);
            let mut cells: Vec<Option<Cell>> = vec![None; 24 * 4];
            let mut lives: Vec<Life> = (0..5).map(|_| Life::default()).collect();
            for (index, choice) in steps {
                let life = &mut lives[index];
                match choice {
                    0..=7 => life.begin(&mut pool, choice),
                    8..=20 => pool.publish(&mut life.table, life.root, &life.tokens),
                    21..=25 => {
                        pool.release(&mut life.table);
                        life.tokens.clear();
                    }
                    _ => life.advance(&mut pool, &mut cells, choice as usize - 25),
                }
                lives[index].check(&pool, &cells);
                check_pool(&pool, &lives);
            }
        }
    }

    /// A table of `tokens`, computed and published.
    fn published(pool: &mut PagePool, root: Root, tokens: &[u32]) -> PageTable {
        let mut table = PageTable::new();
        assert!(pool.grow(&mut table, tokens.len()));
        pool.publish(&mut table, root, tokens);
        table
    }

    #[test]
    fn only_the_same_tokens_after_the_same_tokens_under_the_same_root_are_found() {
        let mut pool = PagePool::new(8, 2);
        let mut table = published(&mut pool, 1, &[1, 2, 3, 4, 5]);
        let found = |tokens, held_pages| Found { tokens, held_pages };
        assert_eq!(pool.find(1, &[1, 2, 3, 4, 5, 6]), found(4, 2));
        assert_eq!(pool.find(1, &[1, 2, 9, 4]), found(2, 1));
        assert_eq!([pool.find(1, &[3, 4]), pool.find(2, &[1, 2, 3, 4])], [found(0, 0); 2]);
        pool.release(&mut table);
        assert_eq!(pool.find(1, &[1, 2, 3, 4]), found(4, 0));
        assert_eq!((pool.num_used(), pool.num_idle(), pool.num_free()), (0, 2, 8));
    }

    #[test]
    fn what_was_used_least_recently_is_given_up_first_and_its_end_before_its_beginning() {
        let mut pool = PagePool::new(4, 2);
        for tokens in [[1, 1, 1, 1], [2, 2, 2, 2]] {
            let mut table = published(&mut pool, 0, &tokens);
            pool.release(&mut table);
        }
        // Used again, the older is the younger.
        let mut table = PageTable::new();
        assert_eq!(pool.share(&mut table, 0, &[1, 1, 1, 1]), 4);
        pool.release(&mut table);
        let mut other = PageTable::new();
        for (tokens, left) in [(2, [4, 2]), (4, [4, 0]), (6, [2, 0]), (8, [0, 0])] {
            assert!(pool.grow(&mut other, tokens));
            assert_eq!([[1; 4], [2; 4]].map(|tokens| pool.find(0, &tokens).tokens), left);
        }
        assert_eq!(pool.num_evictions(), 4);
    }

    #[test]
    fn who_computed_the_same_meanwhile_gives_its_pages_back() {
        let mut pool = PagePool::new(8, 2);
        let first = published(&mut pool, 0, &[1, 2, 3, 4]);
        let second = published(&mut pool, 0, &[1, 2, 3, 4, 5]);
        assert_eq!(second.pages()[..2], first.pages()[..]);
        assert_eq!((pool.num_used(), second.pages().len()), (3, 3));
    }

    #[test]
    fn a_published_page_has_no_slot_to_write_to() {
        let mut pool = PagePool::new(8, 2);
        let table = published(&mut pool, 0, &[1, 2, 3]);
        let has_slot = |position: &usize| pool.slot(&table, *position).is_some();
        assert_eq!((0..6).filter(has_slot).collect::<Vec<_>>(), [2, 3]);
    }
}
