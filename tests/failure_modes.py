"""
What can go wrong from outside, 56 cases, and the tests that hold gemmir to what it does about each.

Tests are named `file::function`, files from `tests/`. Those under `gpu/` need a Hopper GPU; each case has one that does
not, unless only a device can show it.
"""

from __future__ import annotations

CASES: dict[int, tuple[str, str]] = {
    1: ("a wrong dtype", "backends/cuda/test_arguments.py::test_dtypes"),
    2: ("operand types that are mixed", "test_failure_modes.py::test_operand_types_that_do_not_go_together"),
    3: ("a K that disagrees", "backends/cuda/test_arguments.py::test_a_k_that_disagrees"),
    4: (
        "no rows or no columns",
        "test_bad_input.py::test_empty_m_is_an_empty_result "
        "test_ops.py::test_a_product_without_columns_needs_no_kernel "
        "gpu/test_ops.py::test_a_product_without_columns_is_empty",
    ),
    5: ("K of 0", "test_bad_input.py::test_k_of_zero_is_zeros test_bad_input.py::test_nothing_to_add_up_on_the_gpu"),
    6: ("sizes that are none", "test_failure_modes.py::test_sizes_that_are_none"),
    7: ("a misaligned address", "backends/cuda/test_arguments.py::test_misaligned_addresses"),
    8: (
        "a stride that TMA cannot have",
        "backends/cuda/test_arguments.py::test_misaligned_strides "
        "test_bad_input.py::test_sizes_that_tma_cannot_address_are_refused_with_the_nearest_that_it_can",
    ),
    9: ("a box wider than its swizzle", "test_failure_modes.py::test_a_box_that_is_wider_than_its_swizzle"),
    10: ("an unsupported memory order", "backends/cuda/test_arguments.py::test_wrong_memory_order"),
    11: ("rows that overlap", "backends/cuda/test_arguments.py::test_overlapping_rows"),
    12: ("more than 2^31 elements", "gpu/test_failure_modes.py::test_more_than_2_31_elements"),
    13: (
        "coordinates beyond 32 bits",
        "backends/cuda/test_arguments.py::test_sizes "
        "test_failure_modes.py::test_sizes_whose_last_tile_could_not_be_counted "
        "test_failure_modes.py::test_more_rows_than_can_be_counted_are_refused_when_they_come "
        "gpu/test_failure_modes.py::test_as_many_rows_as_there_may_be",
    ),
    14: ("more tiles than can be counted", "test_failure_modes.py::test_more_tiles_than_can_be_counted"),
    15: ("scales of a wrong shape", "test_ops.py::test_the_call_that_is_wrong_raises"),
    16: (
        "scales that are not laid out for TMA",
        "backends/cuda/test_arguments.py::test_scales_of_one_row_still_need_their_pitch",
    ),
    17: (
        "scales that are NaN, infinite, zero or negative",
        "test_failure_modes.py::test_scales_go_through_as_they_are "
        "test_validation.py::test_the_first_scale_that_counts_is_named "
        "test_validation.py::test_a_call_that_is_validated_writes_nothing_before_it_raises "
        "gpu/test_ops.py::test_validation_waits_once",
    ),
    18: (
        "NaN and infinity in operands",
        "test_tensor_core.py::test_nan_and_infinity gpu/test_bits.py::test_adversarial_data",
    ),
    19: (
        "FP8 overflow in quantisation",
        "test_quantization.py::test_every_bit "
        "test_quantization.py::test_what_is_finite_never_overflows "
        "test_quantization.py::test_infinities_saturate_if_that_is_asked_for "
        "test_quantization.py::test_what_is_not_finite_becomes_one_nan_and_counts_for_no_scale",
    ),
    20: ("tensors on several devices", "backends/cuda/test_arguments.py::test_devices"),
    21: (
        "a device that is not current",
        "backends/cuda/test_launch_many.py::test_a_device_that_is_not_current gpu/test_launch.py::test_every_device",
    ),
    22: (
        "an output that overlaps an input",
        "test_bad_input.py::test_an_output_that_overlaps_an_input_is_refused "
        "backends/cuda/test_arguments.py::test_the_result_may_lie_where_c_does",
    ),
    23: (
        "tensors with gradients, sparse or without data",
        "backends/cuda/test_launch.py::test_a_gradient_that_would_be_lost "
        "backends/cuda/test_arguments.py::test_things_that_are_no_dense_tensors "
        "backends/cuda/test_arguments.py::test_a_tensor_made_for_tracing",
    ),
    24: (
        "no GPU or no driver",
        "test_bad_input.py::test_without_a_driver_compiling_works_and_loading_says_what_is_missing",
    ),
    25: (
        "a driver that is too old",
        "backends/cuda/test_driver.py::test_a_driver_that_is_too_old "
        "backends/cuda/test_driver.py::test_a_cubin_that_the_driver_does_not_take",
    ),
    26: (
        "NVRTC missing, too old or too new",
        "test_bad_input.py::test_a_missing_nvrtc_names_the_package "
        "backends/cuda/test_nvrtc.py::test_where_it_was_looked_for_is_listed "
        "backends/cuda/test_nvrtc.py::test_with_a_library_of_another_version",
    ),
    27: (
        "another GPU or target",
        "backends/cuda/test_driver.py::test_another_gpu test_bad_input.py::test_another_target_is_refused",
    ),
    28: (
        "a part of a GPU",
        "backends/cuda/test_launch.py::test_a_slice_of_a_gpu "
        "backends/cuda/test_launch.py::test_fewer_sms_than_a_whole_gpu_has",
    ),
    29: (
        "budgets exceeded, spills",
        "test_legality.py::test_registers_are_counted test_legality.py::test_shared_memory_is_counted "
        "backends/cuda/test_compiler_log.py::test_spills",
    ),
    30: (
        "a cluster that cannot be launched",
        "backends/cuda/test_driver.py::test_clusters_that_run_at_once "
        "backends/cuda/test_launch.py::test_a_cluster_that_fits_nowhere_leaves_nothing_loaded",
    ),
    31: (
        "a group that there is not",
        "test_ops.py::test_an_invalid_group_is_not_written_and_no_error "
        "test_validation.py::test_the_first_bad_entry_of_an_index_is_named "
        "backends/simulator/test_group_results.py::test_drawn_groups gpu/test_ops.py::test_invalid_indices",
    ),
    32: (
        "rows that are out of order or not aligned",
        "test_groups.py::test_the_first_invalid_entry_is_named_and_left_out "
        "test_groups.py::test_no_index_reaches_out_of_bounds_or_writes_twice",
    ),
    33: (
        "counts beyond their room, or negative",
        "test_groups.py::test_the_first_rows_of_a_matrix_count "
        "test_groups.py::test_the_first_invalid_entry_is_named_and_left_out "
        "test_validation.py::test_the_first_bad_entry_of_an_index_is_named gpu/test_ops.py::test_invalid_indices",
    ),
    34: (
        "an expected M that is wrong",
        "test_failure_modes.py::test_what_is_expected_changes_no_bit "
        "test_failure_modes.py::test_what_is_expected_of_groups_changes_no_bit",
    ),
    35: ("empty groups", "backends/reference/test_groups.py::test_every_form_means_what_loops_say"),
    36: (
        "a cache that cannot be written, or no home",
        "test_bad_input.py::test_an_unwritable_cache_does_not_stop_a_compile cache/test_trust.py::test_no_home",
    ),
    37: (
        "a cache of somebody else",
        "cache/test_trust.py::test_a_directory_of_another_user_is_not_read "
        "cache/test_trust.py::test_a_directory_that_others_can_write_is_not_read",
    ),
    38: (
        "a damaged entry",
        "cache/test_damage.py::test_every_flipped_bit_is_noticed_and_repaired "
        "cache/test_damage.py::test_every_truncation_is_noticed_and_repaired",
    ),
    39: ("a writer that was killed", "cache/test_faults.py::test_a_process_that_is_killed_leaves_nothing_wrong"),
    40: (
        "many processes, one kernel",
        "cache/test_together.py::test_processes_that_start_together_compile_each_kernel_once",
    ),
    41: (
        "file systems that cannot lock, or fail",
        "cache/test_faults.py::test_any_call_may_fail_once "
        "cache/test_together.py::test_without_locks_some_compile_twice_and_nobody_fails",
    ),
    42: ("a full disk", "cache/test_faults.py::test_a_disk_that_becomes_full"),
    43: ("a fork", "backends/cuda/test_driver.py::test_after_a_fork gpu/test_launch.py::test_after_a_fork"),
    44: (
        "threads",
        "backends/cuda/test_launch_many.py::test_threads_load_a_kernel_once "
        "backends/cuda/test_launch_many.py::test_threads_that_call_several_kernels_at_once_load_each_once "
        "test_once.py::test_products_that_threads_call_at_once_are_compiled_once_each "
        "gpu/test_launch.py::test_two_threads gpu/test_launch.py::test_threads_that_call_products_at_once",
    ),
    45: (
        "several streams",
        "backends/cuda/test_launch_many.py::test_each_call_is_on_the_stream_that_is_current_then_and_waits_for_nothing "
        "gpu/test_launch.py::test_it_runs_on_the_current_stream gpu/test_launch.py::test_streams_of_their_own_at_once",
    ),
    46: (
        "a first call during capture",
        "backends/cuda/test_launch.py::test_a_first_call_during_capture "
        "gpu/test_launch.py::test_a_first_call_during_capture_is_refused_and_spoils_nothing",
    ),
    47: (
        "memory that runs out",
        "backends/cuda/test_launch.py::test_no_memory_for_a_result "
        "backends/cuda/test_driver.py::test_no_memory_in_the_driver "
        "backends/cuda/test_quantize.py::test_no_memory gpu/test_failure_modes.py::test_no_memory_for_a_result",
    ),
    48: ("malformed IR", "test_bad_input.py::test_malformed_ir_is_shown_with_line_and_column"),
    49: (
        "hostile IR",
        "test_ir_text.py::test_hostile_text_is_refused "
        "fuzz/test_mutations.py::test_mutated_texts_raise_typed_errors_only",
    ),
    50: ("code in names and strings", "test_injection.py::test_names_and_strings_of_a_program"),
    51: ("passes that do not apply", "test_bad_input.py::test_a_pipeline_that_does_not_apply_is_refused"),
    52: (
        "constants that overflow, source without end",
        "test_ir_text.py::test_hostile_text_is_refused test_injection.py::test_a_source_without_end_is_refused "
        "test_failure_modes.py::test_no_number_of_a_kernel_is_more_than_an_int "
        "test_failure_modes.py::test_a_kernel_that_was_unrolled_without_end_is_refused "
        "test_interrupts.py::test_a_compilation_that_takes_too_long",
    ),
    53: (
        "an interrupt",
        "cache/test_faults.py::test_an_interrupt_leaves_nothing_behind "
        "cli/test_main.py::test_an_interrupt_exits_with_130 "
        "test_interrupts.py::test_a_compilation_may_be_interrupted_at_any_moment "
        "test_interrupts.py::test_a_command_may_be_interrupted_at_any_moment "
        "test_interrupts.py::test_an_interrupt_while_nvrtc_compiles_is_heard_before_it_is_done "
        "test_interrupts.py::test_preparing_is_left_at_once",
    ),
    54: (
        "a kernel that hangs",
        "passes/test_hopper_check_sync.py::test_a_hang_is_told_with_everybody_who_waits "
        "sabotage/test_sabotage.py::test_the_checker_finds_it "
        "backends/cuda/test_watchdog.py::test_nothing_is_spilled_or_serialised "
        "backends/cuda/test_watchdog.py::test_the_next_call_says_who_waited "
        "gpu/test_watchdog.py::test_a_kernel_that_hangs_is_ended_and_says_where",
    ),
    55: (
        "a device that is lost",
        "backends/cuda/test_launch.py::test_a_lost_device_is_said_once_and_then_refused "
        "backends/cuda/test_launch.py::test_a_lost_device_is_said_with_the_last_launches "
        "gpu/test_launch.py::test_after_a_fault",
    ),
    56: (
        "faults of the hardware, a device that others reset",
        "backends/cuda/test_driver.py::test_which_errors_stay backends/cuda/test_driver.py::test_an_error_that_stays "
        "backends/cuda/test_launch.py::test_a_device_that_is_lost_through_no_kernel",
    ),
}
"""Number -> what goes wrong, and tests."""
