// SPDX-License-Identifier: GPL-2.0
/* init() hangs in state D for ever. */
#include <linux/module.h>
#include <linux/sched.h>

static void sleep_for_ever(void)
{
	for (;;) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		schedule();
	}
}

static int __init init_hang_init(void)
{
	sleep_for_ever();
	return 0;
}

static void __exit init_hang_exit(void)
{
}

module_init(init_hang_init);
module_exit(init_hang_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("init() hangs in state D for ever");
