//! Loops that are compiled anew for the processor's widest vectors.

/// Numbers that are summed side by side.
pub const LANES: usize = 16;

/// Where the processor has no such instruction it is a call of a function.
#[inline(always)]
pub fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// What is compiled anew for the processor's vectors. All of it must be inlined.
pub trait Work {
    fn run<const FMA: bool>(self);
}

/// Does it by the widest vectors that there are code and instructions for.
pub fn by_vectors(work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn by_avx2(work: impl Work) {
            work.run::<true>();
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has both.
            return unsafe { by_avx2(work) };
        }
    }
    work.run::<{ cfg!(target_arch = "aarch64") }>();
}

/// Lets the second cache read ahead; any address will do.
#[inline(always)]
pub fn prefetch<T>(_place: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, and it faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(_place.cast()) };
    }
}
