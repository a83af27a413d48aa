# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each of the daemon's metrics means, for Prometheus' HELP lines: on the bus they have names and labels alone."""

MEANINGS = {
    "kmodd_build_info": "1, with the versions of kmodd and of the kernel as labels.",
    "kmodd_denials": "Calls that polkit, or the lack of it, did not allow, by method.",
    "kmodd_desired_failures": "Modules that could not be brought to the wanted state.",
    "kmodd_desired_modules": "Modules about which /etc/kmodd/modules.d says something.",
    "kmodd_drift": "Differences between the wanted state and the machine, by kind.",
    "kmodd_health_status": "1 for the status that kmodd has, 0 for the others.",
    "kmodd_jobs": "Operations under way, by state.",
    "kmodd_kernel_call_duration_seconds": "Seconds that calls into the kernel took, by action.",
    "kmodd_kernel_calls": "Calls into the kernel, by action and result.",
    "kmodd_kernel_tainted": "The kernel's taint flags as a number; 0 when it is not tainted.",
    "kmodd_module_failures": "Operations on a module that failed, by action and error.",
    "kmodd_module_last_change_timestamp_seconds": "When a module last came or went, in seconds since 1970-01-01 UTC.",
    "kmodd_module_load_duration_seconds": "Seconds that loading a module took in the kernel.",
    "kmodd_module_loads": "Times a module was loaded, whoever loaded it.",
    "kmodd_module_references": "References that are held on a module.",
    "kmodd_module_size_bytes": "Memory that a loaded module takes.",
    "kmodd_module_state": "1 for the state that a module is in.",
    "kmodd_module_taint": "1 for each flag by which a loaded module taints the kernel.",
    "kmodd_modules_disabled": "1 when the kernel takes no modules any more until it is rebooted.",
    "kmodd_modules_loaded": "Modules that are loaded.",
    "kmodd_operations": "Operations that ended, by action and result.",
    "kmodd_requests": "Calls on the bus that were asked about, refused or failed, by what became of them and by method.",
    "kmodd_settings_valid": "1 when the files that say what is wanted are good, 0 when old ones are in force.",
    "kmodd_stuck_calls": "Calls into the kernel that do not return.",
    "kmodd_uevent_overflows": "Times the kernel told more than could be read, so that all was looked at again.",
    "kmodd_uevents": "Events about modules that the kernel told.",
}
"""By family: a counter's name is without `_total`."""
