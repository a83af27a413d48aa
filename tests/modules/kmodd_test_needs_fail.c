// SPDX-License-Identifier: GPL-2.0
/* Needs fail, so it cannot be loaded while fail refuses. */
#include <linux/module.h>

int kmodd_test_fail_value(void);

static int __init needs_fail_init(void)
{
	return kmodd_test_fail_value() == 3 ? 0 : -EINVAL;
}

static void __exit needs_fail_exit(void)
{
}

module_init(needs_fail_init);
module_exit(needs_fail_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Needs fail, so it cannot be loaded while fail refuses");
