// SPDX-License-Identifier: LGPL-2.1-or-later
// What the views ask of kmodd, over the HTTP API. Cockpit's page has the same functions over D-Bus (cockpit/calls.js).

import {ask, ofModule} from "./api.js";

/** Hints by the status of a failure, for problem documents without one. */
export const HINTS = {
  401: "Sign out and use another token.",
  403: "Request a token with the required scope, or a polkit rule that allows the gateway to do it.",
  429: "Wait a moment and try again.",
  503: "systemctl status kmodd shows whether it runs; this page retries automatically.",
};

/** Who may not read a value that only root can. */
export const UNREADABLE = "not readable for this token";

/** What helps where parts of an explanation are withheld. */
export const WITHHELD = "A token with the scope inspect shows this.";

const ofRules = (name, kind) => `/v1/config/modules/${encodeURIComponent(name)}/${kind}`;

/** Modules in a state: `loaded`, `available`, `builtin` or `all`. */
export const modules = async (state) => (await ask("GET", `/v1/modules?state=${state}`)).modules;

/** Versions of custom modules. */
export const stored = async () => (await ask("GET", "/v1/store")).versions;

/** Health of the system's modules and of kmodd. */
export const health = () => ask("GET", "/v1/health");

/** Records from the journal, the newest last. */
export async function history({limit, requests = false, module = ""}) {
  const query = new URLSearchParams({limit, ...(requests ? {requests} : {}), ...(module ? {module} : {})});
  return (await ask("GET", `/v1/history?${query}`)).records;
}

/** What a module is, why it is there, what holds it. */
export const explain = (name) => ask("GET", ofModule(name, "/explain"));

/** Facts from a module's file and, while it is loaded, its properties as `live`. */
export const describe = (name) => ask("GET", ofModule(name));

/** Every rule in effect. */
export const rules = async () => (await ask("GET", "/v1/config")).rules;

/** The differences between desired and actual state. */
export const drift = async () => (await ask("GET", "/v1/config/drift")).drift;

/** The steps of one operation, as the daemon itself would take them. */
export const plan = async (action, module, parameters = {}, options = {}) =>
  (await ask("POST", "/v1/plan", {operations: [{action, module, parameters}], ...options})).steps;

const operation = (action) => async (name, body) => (await ask("POST", ofModule(name, `/${action}`), body)).message;

/** Operations on a module; each returns one line. */
export const load = operation("load");
export const unload = operation("unload");
export const reload = operation("reload");
export const resetFailed = operation("reset-failed");

/** Write a live parameter; returns the value that the kernel holds now. */
export async function setParameter(module, parameter, body) {
  return (await ask("PUT", ofModule(module, `/parameters/${encodeURIComponent(parameter)}`), body)).value;
}

/** Write a rule of kmodd's own, of the kind `autoload`, `options` or `blacklist`; returns one line. */
export const writeRule = async (name, kind, body) => (await ask("PUT", ofRules(name, kind), body)).message;

/** Bring the system to the desired state; returns the result of each operation. */
export const apply = async (body) => (await ask("POST", "/v1/config/apply", body)).results;

/** Read the configuration files again; returns one line. */
export const reread = async (body) => (await ask("POST", "/v1/config/reload", body)).message;

/** The attack surface: numbers, and modules by `reach`, `kernel` and `match`. */
export const surface = (query) => ask("GET", `/v1/surface?${new URLSearchParams(query)}`);

/** The routes by which a module can be loaded. */
export const routes = async (name) => (await ask("GET", `/v1/surface/${encodeURIComponent(name)}`)).routes;

/** Responses to vulnerabilities whose rules keep modules out. */
export const responses = async () => (await ask("GET", "/v1/responses")).responses;

/** End a response; returns one line. */
export const endResponse = async (id, {reason}) =>
  (await ask("DELETE", `/v1/responses/${encodeURIComponent(id)}?${new URLSearchParams({reason})}`)).message;
