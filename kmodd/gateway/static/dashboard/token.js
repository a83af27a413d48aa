// SPDX-License-Identifier: LGPL-2.1-or-later
// The bearer token: asked for in a dialog, kept for this tab alone, in nothing but sessionStorage and the header.

import {make} from "./dom.js";

const KEY = "kmodd-token";
let asking = null;

/** The token, empty when there is none. */
export const current = () => sessionStorage.getItem(KEY) || "";

/** Forget it. */
export const forget = () => sessionStorage.removeItem(KEY);

/** A new token from whoever sits there; every caller that waits gets the same one. */
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
    return "The gateway does not answer. Is this machine up, and kmodd-gateway.socket listening?";
  }
  if (answer.status === 401) return "This token is not known here, has expired or was revoked.";
  if (answer.status === 403) return "This token may not read. The dashboard needs one with the scope read.";
  if (answer.status === 429) return "Too many attempts. Wait a moment and try again.";
  return ""; // good, or a failure that is not the token's
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
          // What is no token never leaves this page: a header could not carry it.
          const wrong = /^[\x21-\x7e]+$/.test(token) ? "" : "A token has no spaces and no letters beyond ASCII.";
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
      make("h2", {id: "token-title"}, "Token needed"),
      told,
      make("label", {for: "token"}, "Bearer token"),
      input,
      make(
        "p",
        {class: "hint"},
        "Made on the machine, as root: ",
        make("code", {}, "kmodctl token create NAME --scope read"),
        ". Add ",
        make("code", {}, "--scope load"),
        " and others for what you want to do from here. It is kept in this tab until you close it or sign out.",
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
