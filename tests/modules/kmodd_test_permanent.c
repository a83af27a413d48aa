// SPDX-License-Identifier: GPL-2.0
/* Has no exit(), so it cannot be unloaded. */
#include <linux/module.h>

static int __init permanent_init(void)
{
	return 0;
}

module_init(permanent_init);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Has no exit(), so it cannot be unloaded");
