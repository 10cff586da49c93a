//! Tests that need a process of their own: every allocation in it is counted.

mod memory;

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;
