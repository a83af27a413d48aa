// SPDX-License-Identifier: GPL-2.0
/* Loads and unloads; needs nothing, does nothing. */
#include <linux/module.h>

static int __init good_init(void)
{
	return 0;
}

static void __exit good_exit(void)
{
}

module_init(good_init);
module_exit(good_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Loads and unloads; needs nothing, does nothing");
