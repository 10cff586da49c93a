//! Loops that are compiled anew for the processor's widest vectors.

/// Numbers that are summed side by side.
pub const LANES: usize = 16;

/// Where the processor has no such instruction it is a call of a function.
#[inline(always)]
pub fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `sum + factor · x`; compilers leave this to scalars where many sums are held in AVX-512's registers.
///
/// # Safety
///
/// `WIDE` is true only within a [`Work`] that was told so.
#[inline(always)]
pub unsafe fn add_product<const FMA: bool, const WIDE: bool>(
    sum: &mut [f32; LANES],
    factor: f32,
    x: &[f32; LANES],
) {
    #[cfg(target_arch = "x86_64")]
    if WIDE {
        use std::arch::x86_64::{
            _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps,
        };
        // SAFETY: the processor has it, says the caller; all three are as long as its vectors.
        unsafe {
            let product = _mm512_fmadd_ps(
                _mm512_set1_ps(factor),
                _mm512_loadu_ps(x.as_ptr()),
                _mm512_loadu_ps(sum.as_ptr()),
            );
            _mm512_storeu_ps(sum.as_mut_ptr(), product);
        }
        return;
    }
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum = multiply_add::<FMA>(factor, *x, *sum);
    }
}

/// What is compiled anew for the processor's vectors. All of it must be inlined.
pub trait Work {
    type Output;

    /// `WIDE` is with AVX-512, whose registers hold four times the sums.
    fn run<const FMA: bool, const WIDE: bool>(self) -> Self::Output;
}

/// The widest vectors that there are code and instructions for.
#[cfg(target_arch = "x86_64")]
pub enum Widest {
    Avx512,
    Avx2,
    Baseline,
}

#[cfg(target_arch = "x86_64")]
#[inline]
pub fn widest() -> Widest {
    if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("fma") {
        return Widest::Baseline;
    }
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bw");
    if avx512 { Widest::Avx512 } else { Widest::Avx2 }
}

/// Does it by the widest vectors that there are code and instructions for. Each number has the same
/// bits with all that have FMA.
pub fn by_vectors<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
        fn by_avx512<W: Work>(work: W) -> W::Output {
            work.run::<true, true>()
        }
        #[target_feature(enable = "avx2,fma")]
        fn by_avx2<W: Work>(work: W) -> W::Output {
            work.run::<true, false>()
        }
        // SAFETY: the processor has them.
        match widest() {
            Widest::Avx512 => return unsafe { by_avx512(work) },
            Widest::Avx2 => return unsafe { by_avx2(work) },
            Widest::Baseline => {}
        }
    }
    work.run::<{ cfg!(target_arch = "aarch64") }, false>()
}

/// A function that is compiled anew for the processor's widest vectors. Plain loops, which multiply and
/// add one after the other, give the same bits with all of them. What it calls must be inlined. Not a
/// function that takes a closure: what a closure does is compiled once, for the baseline.
macro_rules! vectorised {
    (
        $(#[$attribute:meta])*
        $visible:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block
    ) => {
        $(#[$attribute])*
        $visible fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                fn by_avx512($($argument: $type),*) $(-> $result)? {
                    plain($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn by_avx2($($argument: $type),*) $(-> $result)? {
                    plain($($argument),*)
                }
                // SAFETY: the processor has them.
                match $crate::ops::vectors::widest() {
                    $crate::ops::vectors::Widest::Avx512 => return unsafe { by_avx512($($argument),*) },
                    $crate::ops::vectors::Widest::Avx2 => return unsafe { by_avx2($($argument),*) },
                    $crate::ops::vectors::Widest::Baseline => {}
                }
            }
            plain($($argument),*)
        }
    };
}
pub(crate) use vectorised;

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
