// Keeps the page fresh: asks for its live parts every two seconds and puts them where the old ones stood.
// Everything is drawn by the service; without scripts the page is the same, and is loaded anew by hand.
"use strict";
(() => {
  const every = 2000;
  const pause = document.querySelector("[data-pause]");
  let paused = false;

  const put = (html) => {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    for (const part of fresh.querySelectorAll("[data-live]")) {
      const old = document.getElementById(part.id);
      // Whoever reads or writes in a part is not disturbed.
      if (old && !old.contains(document.activeElement)) old.replaceWith(part);
    }
  };

  const refresh = async () => {
    if (!paused && !document.hidden) {
      try {
        const answer = await fetch("/page/live", { headers: { accept: "text/html" } });
        if (answer.status === 401) return location.reload();
        if (answer.ok) put(await answer.text());
        document.body.classList.toggle("stale", !answer.ok);
      } catch {
        document.body.classList.add("stale");
      }
    }
    setTimeout(refresh, every);
  };
  if (document.querySelector("[data-live]")) setTimeout(refresh, every);

  if (pause) {
    pause.hidden = false;
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.setAttribute("aria-pressed", String(paused));
      pause.textContent = paused ? "Go on" : "Pause";
    });
  }

  // A form that answers in place: sent as it is typed, the newest answer wins.
  for (const form of document.querySelectorAll("form[data-in-place]")) {
    const target = document.getElementById(form.dataset.inPlace);
    let timer = 0;
    let number = 0;
    const send = async () => {
      const mine = ++number;
      target.setAttribute("aria-busy", "true");
      try {
        const body = new URLSearchParams(new FormData(form));
        const answer = await fetch(form.action, { method: "POST", body, headers: { "x-part": "1" } });
        const text = await answer.text();
        if (mine !== number) return;
        if (answer.status === 401) return location.reload();
        const part = new DOMParser().parseFromString(text, "text/html").getElementById(target.id);
        if (part) target.replaceChildren(...part.childNodes);
      } catch {
        if (mine === number) target.textContent = "The service does not answer.";
      } finally {
        if (mine === number) target.removeAttribute("aria-busy");
      }
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      clearTimeout(timer);
      send();
    });
    form.addEventListener("input", (event) => {
      const shown = form.querySelector("output");
      if (shown && event.target.type === "range") shown.value = Number(event.target.value).toFixed(1);
      if (!form.elements.text || !form.elements.text.value) return;
      clearTimeout(timer);
      timer = setTimeout(send, event.target.type === "range" ? 120 : 450);
    });
  }
})();
