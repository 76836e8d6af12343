// (comes next)
export class Runs {
  open() {}
}
