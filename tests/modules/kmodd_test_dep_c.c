// SPDX-License-Identifier: GPL-2.0
/* The top of a chain: dep_c needs dep_b needs dep_a. */
#include <linux/module.h>

int kmodd_test_dep_b_value(void);

static int __init dep_c_init(void)
{
	return kmodd_test_dep_b_value() == 2 ? 0 : -EINVAL;
}

static void __exit dep_c_exit(void)
{
}

module_init(dep_c_init);
module_exit(dep_c_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("The top of a chain: dep_c needs dep_b needs dep_a");
