// SPDX-License-Identifier: GPL-2.0
/* exit() hangs in state D for ever. */
#include <linux/module.h>
#include <linux/sched.h>

static void sleep_for_ever(void)
{
	for (;;) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		schedule();
	}
}

static int __init exit_hang_init(void)
{
	return 0;
}

static void __exit exit_hang_exit(void)
{
	sleep_for_ever();
}

module_init(exit_hang_init);
module_exit(exit_hang_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("exit() hangs in state D for ever");
