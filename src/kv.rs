//! Which KV pages are free and which sequence holds which: bookkeeping only, no device memory.
//!
//! A page holds the keys and values of `page_tokens` consecutive tokens of one sequence, in every
//! layer. The engine takes pages as sequences grow and gives them back when they end or are
//! preempted; the page numbers reach the model as slots and block-table rows of a `Batch`.

/// The pages of one sequence, in order. Not `Clone`: a page has one owner.
#[derive(Debug, Default)]
pub struct PageTable {
    pages: Vec<u32>,
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

/// The free pages of an engine.
#[derive(Debug)]
pub struct PagePool {
    /// Used as a stack: the page freed last, still warm in the caches, is taken first.
    free: Vec<u32>,
    num_pages: usize,
    page_tokens: usize,
}

impl PagePool {
    /// A pool of `num_pages` free pages of `page_tokens` tokens each.
    pub fn new(num_pages: u32, page_tokens: usize) -> PagePool {
        PagePool {
            free: (0..num_pages).rev().collect(),
            num_pages: num_pages as usize,
            page_tokens,
        }
    }

    /// Pages in the pool, free or not.
    pub fn num_pages(&self) -> usize {
        self.num_pages
    }

    /// Pages nobody holds.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Pages held by sequences.
    pub fn num_used(&self) -> usize {
        self.num_pages - self.free.len()
    }

    /// Makes `table` long enough for `num_tokens` tokens. `false`, with nothing taken, when too few
    /// pages are free.
    #[must_use]
    pub fn grow(&mut self, table: &mut PageTable, num_tokens: usize) -> bool {
        let wanted = pages_for(num_tokens, self.page_tokens).saturating_sub(table.pages.len());
        if wanted > self.free.len() {
            return false;
        }
        let kept = self.free.len() - wanted;
        table.pages.extend(self.free.drain(kept..).rev());
        true
    }

    /// Takes all pages of `table` back.
    pub fn release(&mut self, table: &mut PageTable) {
        self.free.extend(table.pages.drain(..).rev());
    }

    /// The slot of the token at `position`: `page * page_tokens + offset in page`. `None` when
    /// `table` does not reach that far.
    pub fn slot(&self, table: &PageTable, position: usize) -> Option<u32> {
        let page = *table.pages.get(position / self.page_tokens)? as usize;
        u32::try_from(page * self.page_tokens + position % self.page_tokens).ok()
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

    proptest! {
        #[test]
        fn no_page_has_two_owners(steps in proptest::collection::vec((0usize..4, 0usize..200), 1..60)) {
            let mut pool = PagePool::new(20, 16);
            let mut tables: Vec<PageTable> = (0..4).map(|_| PageTable::new()).collect();
            for (index, tokens) in steps {
                if tokens < 20 {
                    pool.release(&mut tables[index]);
                } else {
                    let before = pool.num_free();
                    let grown = pool.grow(&mut tables[index], tokens);
                    prop_assert!(grown || pool.num_free() == before);
                }
                let mut held: Vec<u32> = tables.iter().flat_map(|t| t.pages().to_vec()).collect();
                prop_assert_eq!(held.len(), pool.num_used());
                held.sort_unstable();
                held.dedup();
                prop_assert_eq!(held.len(), pool.num_used());
            }
        }
    }
}
