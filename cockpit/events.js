// SPDX-License-Identifier: LGPL-2.1-or-later
// Signals of kmodd as the events that the views know, as the HTTP gateway names them (kmodd/gateway/daemon_connection.py).

import {fromBus} from "./values.js";

const last = (path) => path.slice(path.lastIndexOf("/") + 1);

function changed(path, name, values) {
  const kind = last(name.replaceAll(".", "/"));
  if (kind === "Manager" && "Health" in values) return ["health", {}];
  if (kind === "Job") return ["job-changed", {job: last(path), changed: fromBus(values)}];
  return [`${kind.toLowerCase()}-changed`, {}];
}

/** The kind and data of a signal; nothing for one that another signal already reports. */
export function translate(path, _, member, args) {
  switch (member) {
    case "ModuleAdded":
      return ["module-added", {}];
    case "ModuleRemoved":
      return ["module-removed", {}];
    case "JobFinished":
      return ["job-finished", {job: last(args[0])}];
    case "HistoryChanged":
      return ["history-changed", {}];
    case "InterfacesAdded": {
      const job = args[1]["org.kmodd1.Job"];
      return job && ["job-started", {job: last(args[0]), ...fromBus(job)}];
    }
    case "PropertiesChanged":
      return changed(path, args[0], args[1]);
    default:
      return undefined;
  }
}
