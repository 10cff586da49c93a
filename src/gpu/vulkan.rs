//! What is missing where wgpu finds no GPU.

/// Whether the library that finds Vulkan's drivers is there.
#[cfg(target_os = "linux")]
fn has_loader() -> bool {
    // SAFETY: opens the system's own library and closes it.
    unsafe { libloading::Library::new("libvulkan.so.1") }.is_ok()
}

#[cfg(not(target_os = "linux"))]
fn has_loader() -> bool {
    true
}

/// One sentence that says what to do, where CubeCL's panic says that there is no such GPU.
pub fn lack(number: Option<usize>, panic: &str) -> Option<String> {
    said(has_loader(), number, panic)
}

fn said(loader: bool, number: Option<usize>, panic: &str) -> Option<String> {
    let none = panic.contains("No possible adapter") || panic.contains("No Discrete GPU");
    match (loader, number) {
        (false, _) => Some(
            "this machine has no Vulkan (libvulkan.so.1 cannot be loaded); apt-get install libvulkan1 \
             and the GPU's driver, or use --device cpu"
                .into(),
        ),
        (true, Some(number)) if none => Some(format!(
            "there is no wgpu:{number}: numbers count discrete GPUs with a Vulkan driver, from 0 on; \
             see vulkaninfo --summary, or use --device wgpu, which takes whichever is best"
        )),
        (true, None) if none => Some(
            "Vulkan finds no GPU; install the GPU's Vulkan driver (mesa-vulkan-drivers on Debian and \
             Ubuntu; see vulkaninfo --summary), or use --device cpu"
                .into(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_says_what_to_do() {
        let of = |loader, number, panic: &str| said(loader, number, panic).unwrap_or_default();
        assert!(of(false, None, "").contains("apt-get install libvulkan1"));
        let none = "No possible adapter available for backend. Falling back to first available.";
        assert!(of(true, None, none).starts_with("Vulkan finds no GPU; "));
        let no_such = "No Discrete GPU device found, adapters [], other adapters []";
        assert!(of(true, Some(3), no_such).starts_with("there is no wgpu:3: "));
        assert_eq!(said(true, None, "a lost device"), None);
    }
}
