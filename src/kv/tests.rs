//! The pool's invariants, by counting; for random lives that share pages, and by example.

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
fn check_pool(pool: &PagePool, lives: &[Life], withdrawn: &[u64]) {
    let mut holders = vec![0; pool.num_pages()];
    for life in lives {
        life.table.pages().iter().for_each(|page| holders[*page as usize] += 1);
        for (index, page) in life.table.pages().iter().enumerate() {
            let is_published = index < life.table.num_published;
            assert!(is_published || pool.pages[*page as usize].key.is_none());
        }
    }
    let mut seen = vec![0; pool.num_pages()];
    pool.free.iter().chain(pool.idle.values()).for_each(|page| seen[*page as usize] += 1);
    for (number, page) in pool.pages.iter().enumerate() {
        assert_eq!(page.holders, holders[number]);
        assert_eq!(seen[number], u32::from(page.holders == 0), "free and held, or neither");
    }
    for (key, number) in pool.index.iter() {
        assert_eq!(pool.pages[number as usize].key.as_ref(), Some(key));
        if let Parent::Page(serial) = key.parent {
            let child = &pool.pages[number as usize];
            let is_parent = |page: &&Page| page.key.is_some() && page.serial == serial;
            let Some(parent) = pool.pages.iter().find(is_parent) else {
                assert!(withdrawn.contains(&serial), "outlives the page it is found by");
                continue;
            };
            assert!(parent.holders >= child.holders);
            assert!(parent.holders > 0 || parent.idle_since > child.idle_since, "goes first");
        }
    }
}

fn serials(pool: &PagePool, table: &PageTable) -> Vec<u64> {
    let published = table.pages().iter().map(|page| &pool.pages[*page as usize]);
    published.filter(|page| page.key.is_some()).map(|page| page.serial).collect()
}

/// What is said to come back does when the tables from `first` on are released, last first, by counting
/// holders. What another one finds is left out.
fn check_returns(pool: &mut PagePool, lives: &[Life], first: usize) {
    let told = |pool: &mut PagePool, left_out: Option<&Life>| {
        pool.begin_returns();
        left_out.into_iter().for_each(|life| pool.leave_out(life.root, &life.tokens));
        let last_first = lives[first..].iter().rev();
        last_first.map(|life| pool.returns(&life.table)).collect::<Vec<_>>()
    };
    let all = told(pool, None);
    let mut holders: Vec<u32> = pool.pages.iter().map(|page| page.holders).collect();
    for (life, told) in lives[first..].iter().rev().zip(&all) {
        life.table.pages().iter().for_each(|page| holders[*page as usize] -= 1);
        let back = life.table.pages().iter().filter(|page| holders[**page as usize] == 0);
        assert_eq!(back.count(), *told);
    }
    for life in lives {
        let others: usize = told(pool, Some(life)).iter().sum();
        let mut table = PageTable::new();
        pool.share(&mut table, life.root, &life.tokens);
        let back = table.pages().iter().filter(|page| holders[**page as usize] == 0);
        let was_held = |page: &&u32| pool.pages[**page as usize].holders > 1;
        let left_out = back.filter(was_held).count();
        pool.release(&mut table);
        assert_eq!(others + left_out, all.iter().sum::<usize>());
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
        let mut withdrawn = Vec::new();
        for (index, choice) in steps {
            let life = &mut lives[index];
            match choice {
                0..=7 => life.begin(&mut pool, choice),
                8..=20 => pool.publish(&mut life.table, life.root, &life.tokens),
                21..=24 => {
                    pool.release(&mut life.table);
                    life.tokens.clear();
                }
                25 => {
                    withdrawn.extend(serials(&pool, &life.table));
                    pool.withdraw(&life.table);
                    let mut other = PageTable::new();
                    pool.share(&mut other, life.root, &life.tokens);
                    assert!(other.pages().iter().all(|page| !life.table.pages().contains(page)));
                    pool.release(&mut other);
                }
                _ => life.advance(&mut pool, &mut cells, choice as usize - 25),
            }
            lives[index].check(&pool, &cells);
            check_pool(&pool, &lives, &withdrawn);
            check_returns(&mut pool, &lives, index);
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

#[test]
fn behind_a_page_that_was_withdrawn_nothing_is_published() {
    let mut pool = PagePool::new(8, 2);
    let mut table = published(&mut pool, 0, &[1, 2]);
    pool.withdraw(&table);
    assert!(pool.grow(&mut table, 6));
    pool.publish(&mut table, 0, &[1, 2, 3, 4, 5, 6]);
    assert_eq!(pool.find(0, &[1, 2, 3, 4]).tokens, 0);
    pool.release(&mut table);
    assert_eq!((pool.num_idle(), pool.num_free()), (0, 8));
}
