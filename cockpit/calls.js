// SPDX-License-Identifier: LGPL-2.1-or-later
// What the views ask of kmodd, over D-Bus. The dashboard has the same functions over HTTP (kmodd/gateway/static/dashboard/calls.js).

import {PATH, Problem, call, map, maps} from "./bus.js";
import {options} from "./values.js";

const ACCESS = "Turn on administrative access at the top of the page";
const REFUSED = ["AccessDenied", "InteractiveAuthorizationRequired"];

/** Hints by the status of a failure: of none, for each error has its own. */
export const HINTS = {};

/** Who may not read a value that only root can. */
export const UNREADABLE = "readable only with administrative access";

/** What helps where parts of an explanation are withheld. */
export const WITHHELD = `${ACCESS} to see this.`;

// What `Explain` knows about a failure, by the error.
const EXPLAINED = {
  InUse: ({holders, users, consequences}) => ({holders, users, consequences}),
  DisabledByPolicy: ({policy}) => ({policy}),
};

/** The evidence of a failure of an operation, which `plan` plans once more. */
async function evidence({name, message}, module, plan) {
  const [explained, steps] = await Promise.all([explain(module).catch(() => ({})), plan().catch(() => [])]);
  const {failure, users = [], holders = [], free = []} = explained;
  // Otherwise it is an earlier failure, of something else.
  const left = failure?.message === message ? failure : undefined;
  const commands = name === "InUse" ? free.join("; ") : "";
  const hint = commands || left?.hint || steps.find((each) => each.error === name)?.hint || undefined;
  return {
    module,
    ...EXPLAINED[name]?.({...explained, users, holders}),
    hint,
    errno: left?.errno,
    kernel_log: left?.kernel_log,
  };
}

/** Run a change; bridges pass on only the message of an error, so what else is known about a failure is asked for afterwards. */
async function change(module, run, plan = async () => []) {
  try {
    return await run();
  } catch (problem) {
    const {name, message} = problem;
    if (REFUSED.includes(name)) throw new Problem(name, message, {hint: `${ACCESS}, or request a polkit rule for your user.`});
    if (!module || !(problem instanceof Problem)) throw problem;
    const facts = await evidence(problem, module, plan);
    throw new Problem(name, message, Object.fromEntries(Object.entries(facts).filter(([, value]) => value !== undefined)));
  }
}

/** Modules in a state: `loaded`, `available`, `builtin` or `all`. */
export const modules = (state) => maps("Manager.ListModules", "a{sv}", [options({state})]);

/** Versions of custom modules. */
export const stored = () => maps("Store.List");

/** Health of the system's modules and of kmodd. */
export const health = () => map("Manager.GetHealth");

let refusal = null;

/**
 * Records from the journal, the newest last. A refusal is final until the page is loaded again, as when access changes: each is a
 * record, and views read the history after each new record.
 */
export async function history({limit, requests = false, module = ""}) {
  if (refusal) throw refusal;
  try {
    return await change("", () => maps("Manager.GetHistory", "a{sv}", [options({limit, requests, module})]));
  } catch (problem) {
    if (REFUSED.includes(problem.name)) refusal = problem;
    throw problem;
  }
}

/** What a module is, why it is there, what holds it. */
export const explain = (name) => map("Manager.Explain", "sa{sv}", [name, {}]);

// As sd_bus_path_encode(3) does.
const escaped = (name) => name.replace(/^[0-9]|[^A-Za-z0-9]/g, (one) => `_${one.charCodeAt(0).toString(16).padStart(2, "0")}`);

/** Facts from a module's file and, while it is loaded, its properties as `live`. */
export async function describe(name) {
  const [described] = await Promise.allSettled([map("Manager.Describe", "sa{sv}", [name, {}])]);
  // The object has the module's own name; the address may have an alias, or hyphens.
  const own = (described.value?.name ?? name).replaceAll("-", "_");
  const [live] = await Promise.allSettled([
    map("org.freedesktop.DBus.Properties.GetAll", "s", ["org.kmodd1.Module"], `${PATH}/module/${escaped(own)}`),
  ]);
  // A module can be loaded although its file is gone; one that is not loaded has no object.
  if (described.status === "rejected" && live.status === "rejected") throw described.reason;
  return {name, ...described.value, ...(live.value ? {live: live.value} : {})};
}

/** Every rule in effect. */
export const rules = () => maps("Configuration.Show");

/** The differences between desired and actual state. */
export const drift = () => maps("Configuration.GetDrift");

/** The steps of one operation, as the daemon itself would take them. */
export const plan = (action, module, parameters = {}, more = {}) =>
  maps("Manager.Plan", "a(ssa{ss})a{sv}", [[[action, module, parameters]], options(more)]);

// Options that say how to plan; the others are for the journal.
const planned = ({dependents, unused_dependencies, disconnect}) => ({dependents, unused_dependencies, disconnect});

/** Operations on a module; each returns one line. */
export async function load(name, {parameters, ...more}) {
  const run = () => call("Manager.Load", "sa{ss}a{sv}", [name, parameters, options(more)]);
  await change(name, run, () => plan("load", name, parameters));
  return `Module ${name} loaded successfully`;
}

export async function unload(name, more) {
  const run = () => call("Manager.Unload", "sa{sv}", [name, options(more)]);
  await change(name, run, () => plan("unload", name, {}, planned(more)));
  return `Module ${name} unloaded successfully`;
}

export async function reload(name, {parameters, ...more}) {
  const run = () => call("Manager.Reload", "sa{ss}a{sv}", [name, parameters, options(more)]);
  await change(name, run, () => plan("reload", name, parameters, planned(more)));
  return `Module ${name} reloaded successfully`;
}

export async function resetFailed(name, more) {
  await change(name, () => call("Manager.ResetFailed", "sa{sv}", [name, options(more)]));
  return `Cleared the recorded failure of module ${name}`;
}

/** Write a live parameter; returns the value that the kernel holds now. */
export const setParameter = (module, parameter, {value, ...more}) =>
  change(module, () => call("Manager.SetParameter", "sssa{sv}", [module, parameter, value, options(more)]));

const RULES = {
  autoload: ["SetAutoload", "sba{ss}a{sv}", ({enabled, parameters = {}}) => [enabled, parameters]],
  options: ["SetOptions", "sa{ss}a{sv}", ({parameters}) => [parameters]],
  blacklist: ["SetBlacklisted", "sba{sv}", ({blacklisted}) => [blacklisted]],
};

/** Write a rule of kmodd's own, of the kind `autoload`, `options` or `blacklist`; returns one line. */
export async function writeRule(name, kind, {dry_run: dryRun, reason, hard, ...body}) {
  const [member, type, args] = RULES[kind];
  const more = options({"dry-run": dryRun, reason, hard});
  await change(name, () => call(`Configuration.${member}`, type, [name, ...args(body), more]));
  return `Rules for module ${name} updated`;
}

/** Bring the system to the desired state; returns the result of each operation. */
export const apply = (more) => change("", () => maps("Configuration.Apply", "a{sv}", [options(more)]));

/** Read the configuration files again; returns one line. */
export async function reread(more) {
  await change("", () => call("Configuration.Reload", "a{sv}", [options(more)]));
  return "Configuration reloaded";
}

/** The attack surface: numbers, and modules by `reach`, `kernel` and `match`. */
export async function surface({kernel, reach, match, limit}) {
  const [numbers, rows] = await Promise.all([
    map("Surface.GetSummary", "a{sv}", [options({kernel})]),
    maps("Surface.Get", "a{sv}", [options({kernel, reach, match, limit})]),
  ]);
  return {...numbers, modules: rows};
}

/** The routes by which a module can be loaded. */
export const routes = (name) => maps("Surface.GetRoutes", "sa{sv}", [name, {}]);

/** Responses to vulnerabilities whose rules keep modules out. */
export const responses = () => maps("Surface.GetResponses");

/** End a response; returns one line. */
export async function endResponse(id, more) {
  await change("", () => call("Surface.EndResponse", "sa{sv}", [id, options(more)]));
  return `Response ${id} ended`;
}
