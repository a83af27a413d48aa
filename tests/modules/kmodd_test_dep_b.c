// SPDX-License-Identifier: GPL-2.0
/* The middle of a chain: dep_c needs dep_b needs dep_a. */
#include <linux/module.h>

int kmodd_test_dep_a_value(void);

int kmodd_test_dep_b_value(void)
{
	return kmodd_test_dep_a_value() + 1;
}
EXPORT_SYMBOL_GPL(kmodd_test_dep_b_value);

static int __init dep_b_init(void)
{
	return kmodd_test_dep_a_value() == 1 ? 0 : -EINVAL;
}

static void __exit dep_b_exit(void)
{
}

module_init(dep_b_init);
module_exit(dep_b_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("The middle of a chain: dep_c needs dep_b needs dep_a");
