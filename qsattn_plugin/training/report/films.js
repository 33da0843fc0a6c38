"use strict";
(() => {
  // All films follow one step: pictures, maps and the mark in the curves belong together.
  const films = [...document.querySelectorAll(".film")].filter((film) => film.querySelector(".player"));
  const show = (step) => {
    for (const film of films) {
      const frames = [...film.querySelectorAll(".frame")];
      const steps = frames.map((frame) => Number(frame.dataset.step));
      const index = steps.reduce((best, s, i) => (Math.abs(s - step) < Math.abs(steps[best] - step) ? i : best), 0);
      const places = [...film.querySelectorAll(".on .scroll")].map((part) => part.scrollLeft);
      frames.forEach((frame, i) => frame.classList.toggle("on", i === index));
      // Whoever looks at the seventh picture wants to see the seventh of every evaluation.
      film.querySelectorAll(".on .scroll").forEach((part, i) => { part.scrollLeft = places[i] || 0; });
      const slider = film.querySelector("input");
      slider.value = index;
      slider.setAttribute("aria-valuetext", frames[index].dataset.caption);
      film.querySelector("output").textContent = frames[index].dataset.caption;
    }
    document.dispatchEvent(new CustomEvent("qsattn-step", { detail: step }));
  };
  for (const film of films) {
    const steps = [...film.querySelectorAll(".frame")].map((frame) => Number(frame.dataset.step));
    const slider = film.querySelector("input");
    const play = film.querySelector("[data-play]");
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
      play.setAttribute("aria-pressed", "false");
    };
    film.classList.add("played");
    film.querySelector(".player").hidden = false;
    slider.addEventListener("input", () => { stop(); show(steps[Number(slider.value)]); });
    film.querySelectorAll("[data-go]").forEach((button) => {
      button.addEventListener("click", () => { stop(); show(steps[Number(button.dataset.go)]); });
    });
    play.addEventListener("click", () => {
      if (timer) { stop(); return; }
      let next = Number(slider.value) >= steps.length - 1 ? 0 : Number(slider.value) + 1;
      const advance = () => {
        show(steps[next]);
        next += 1;
        if (next >= steps.length) stop();
      };
      timer = setInterval(advance, 700);
      play.textContent = "Pause";
      play.setAttribute("aria-pressed", "true");
      advance();
    });
    show(steps.at(-1));
  }

  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
})();
