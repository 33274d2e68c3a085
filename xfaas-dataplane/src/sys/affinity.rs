//! Pinning a thread to one CPU.

#[derive(Debug, thiserror::Error)]
#[error("cannot run on CPU {cpu}: it does not exist, is offline, or is outside this process's affinity mask (allowed: {allowed:?})")]
pub struct AffinityError {
    pub cpu: u16,
    pub allowed: Vec<u16>,
}

/// CPU numbers that this process may run on, ascending.
pub fn allowed_cpus() -> Vec<u16> {
    let mut cpus: Vec<u16> = core_affinity::get_core_ids().unwrap_or_default().iter().filter_map(|core| core.id.try_into().ok()).collect();
    cpus.sort_unstable();
    cpus
}

/// Pins the calling thread to `cpu`.
pub fn pin_to(cpu: u16) -> Result<(), AffinityError> {
    if core_affinity::set_for_current(core_affinity::CoreId { id: usize::from(cpu) }) {
        return Ok(());
    }
    Err(AffinityError { cpu, allowed: allowed_cpus() })
}
