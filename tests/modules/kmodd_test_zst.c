// SPDX-License-Identifier: GPL-2.0
/* Installed compressed with zstd. */
#include <linux/module.h>

static int __init zst_init(void)
{
	return 0;
}

static void __exit zst_exit(void)
{
}

module_init(zst_init);
module_exit(zst_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Installed compressed with zstd");
