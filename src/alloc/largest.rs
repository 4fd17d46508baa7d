//! For tests: the largest piece of memory that a thread asks for at once.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What lists of many connections may ask for at once. mimalloc puts larger pieces into pages of 4 MiB
/// for each size, of which what was once used stays resident.
pub const PIECE_BYTES_MAX: usize = 84 << 10;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Watching;

#[global_allocator]
static WATCHING: Watching = Watching;

fn note(bytes: usize) {
    // Not while the thread ends.
    let _noted = LARGEST.try_with(|largest| largest.set(largest.get().max(bytes)));
}

// SAFETY: all memory is the system allocator's, which is given what the caller gives; `note` allocates
// nothing.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(start, layout, size) }
    }
}

/// The size of the largest piece for which this thread asks in `work`.
pub fn largest_in<T>(work: impl FnOnce() -> T) -> usize {
    LARGEST.set(0);
    drop(work());
    LARGEST.get()
}

#[test]
fn a_table_that_doubles_is_seen() {
    let table =
        || (0..10_000).map(|number| (number, 0_u64)).collect::<std::collections::HashMap<_, _>>();
    assert!(largest_in(table) > PIECE_BYTES_MAX);
    let list = || (0..10_000_u64).collect::<std::collections::BTreeSet<_>>();
    assert!(largest_in(list) < PIECE_BYTES_MAX);
}
