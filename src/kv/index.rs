//! What a published page is found by: the page before it and its own tokens, compared whole. A map from
//! these to page numbers; it counts nobody who holds a page.

use std::collections::HashMap;
use std::sync::Arc;

use super::Root;

/// What a published page is found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) parent: Parent,
    tokens: Vec<u32>,
}

/// What comes before a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Parent {
    Root(Root),
    /// The serial number of a published page: page numbers are used again, these are not. So what is
    /// behind a page that is gone is never found behind another.
    Page(u64),
}

/// The published pages.
#[derive(Debug)]
pub(super) struct Index {
    pages: HashMap<Arc<Key>, u32>,
    /// A key to look up with: its memory is used again.
    probe: Key,
}

impl Default for Index {
    fn default() -> Index {
        let probe = Key { parent: Parent::Root(0), tokens: Vec::new() };
        Index { pages: HashMap::new(), probe }
    }
}

impl Index {
    pub(super) fn get(&mut self, parent: Parent, tokens: &[u32]) -> Option<u32> {
        self.probe.parent = parent;
        self.probe.tokens.clear();
        self.probe.tokens.extend_from_slice(tokens);
        self.pages.get(&self.probe).copied()
    }

    /// Enters `page`; the key to remove it by.
    pub(super) fn insert(&mut self, parent: Parent, tokens: &[u32], page: u32) -> Arc<Key> {
        let key = Arc::new(Key { parent, tokens: tokens.to_vec() });
        self.pages.insert(Arc::clone(&key), page);
        key
    }

    pub(super) fn remove(&mut self, key: &Key) {
        self.pages.remove(key);
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<Key>, u32)> {
        self.pages.iter().map(|(key, page)| (key, *page))
    }
}
