// SPDX-License-Identifier: GPL-2.0
/* Asks for soft_pre before it and soft_post after it. */
#include <linux/module.h>

static int __init soft_init(void)
{
	return 0;
}

static void __exit soft_exit(void)
{
}

module_init(soft_init);
module_exit(soft_exit);
MODULE_SOFTDEP("pre: kmodd_test_soft_pre post: kmodd_test_soft_post");

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Asks for soft_pre before it and soft_post after it");
