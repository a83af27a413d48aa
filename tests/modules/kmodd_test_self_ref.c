// SPDX-License-Identifier: GPL-2.0
/* Holds a reference to itself while its parameter hold is true: in use, by nothing in user space. */
#include <linux/module.h>

static bool hold;

static int hold_set(bool wanted)
{
	if (wanted && !hold && !try_module_get(THIS_MODULE))
		return -ENOENT;
	if (!wanted && hold)
		module_put(THIS_MODULE);
	hold = wanted;
	return 0;
}

static int hold_store(const char *text, const struct kernel_param *parameter)
{
	bool wanted;
	int result = kstrtobool(text, &wanted);

	return result ? result : hold_set(wanted);
}

static const struct kernel_param_ops hold_ops = { .set = hold_store, .get = param_get_bool };
module_param_cb(hold, &hold_ops, &hold, 0644);
__MODULE_PARM_TYPE(hold, "bool");
MODULE_PARM_DESC(hold, "whether it holds a reference to itself");

static int __init self_ref_init(void)
{
	return hold_set(true);
}

static void __exit self_ref_exit(void)
{
}

module_init(self_ref_init);
module_exit(self_ref_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Holds a reference to itself while hold is true");
