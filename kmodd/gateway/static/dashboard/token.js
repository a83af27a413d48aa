// SPDX-License-Identifier: LGPL-2.1-or-later
// The bearer token: entered in a dialog, kept only for this tab, in sessionStorage and the header.

import {make} from "./shared/dom.js";

const KEY = "kmodd-token";
let asking = null;

/** The token, empty when there is none. */
export const current = () => sessionStorage.getItem(KEY) || "";

/** Forget it. */
export const forget = () => sessionStorage.removeItem(KEY);

/** A new token from the user; every waiting caller gets the same one. */
export function demand(why) {
  asking ??= dialog(why).finally(() => {
    asking = null;
  });
  return asking;
}

async function refusal(token) {
  let answer;
  try {
    answer = await fetch("/v1/modules", {headers: {Authorization: `Bearer ${token}`}, cache: "no-store"});
  } catch {
    return "The gateway does not respond. Check that the system is up and kmodd-gateway.socket is listening.";
  }
  if (answer.status === 401) return "This token is unknown, expired or revoked.";
  if (answer.status === 403) return "This token lacks the scope read, which the dashboard requires.";
  if (answer.status === 429) return "Too many attempts. Wait a moment and try again.";
  return ""; // valid, or a failure unrelated to the token
}

function dialog(why) {
  return new Promise((resolve) => {
    const input = make("input", {
      id: "token",
      type: "password",
      required: true,
      autocomplete: "off",
      spellcheck: "false",
      "aria-describedby": "token-told",
    });
    const told = make("p", {id: "token-told", role: "alert"}, why);
    const button = make("button", {class: "primary"}, "Continue");
    const form = make(
      "form",
      {
        submit: async (event) => {
          event.preventDefault();
          const token = input.value.trim();
          // Text that is not a token is never sent: a header could not carry it.
          const wrong = /^[\x21-\x7e]+$/.test(token) ? "" : "A token has only ASCII characters and no spaces.";
          button.disabled = true;
          const refused = wrong || (await refusal(token));
          button.disabled = false;
          if (refused) {
            told.textContent = refused;
            input.select();
            input.focus();
            return;
          }
          sessionStorage.setItem(KEY, token);
          box.close();
          box.remove();
          resolve(token);
        },
      },
      make("h2", {id: "token-title"}, "Token required"),
      told,
      make("label", {for: "token"}, "Bearer token"),
      input,
      make(
        "p",
        {class: "hint"},
        "Create one on the system as root: ",
        make("code", {}, "kmodctl token create NAME --scope read"),
        ". Add ",
        make("code", {}, "--scope inspect"),
        " to see other users’ processes and the kernel log, ",
        make("code", {}, "--scope load"),
        " and others for changes. It is kept in this tab until you close it or sign out.",
      ),
      make("p", {class: "buttons"}, button),
    );
    // Without a token there is nothing behind it to go back to; a browser may close it on Escape all the same.
    function again() {
      if (!box.isConnected) return;
      box.showModal();
      input.focus();
    }
    const box = make(
      "dialog",
      {class: "token", "aria-labelledby": "token-title", cancel: (event) => event.preventDefault(), close: again},
      form,
    );
    document.body.append(box);
    again();
  });
}
