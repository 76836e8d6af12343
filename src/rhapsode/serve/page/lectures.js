// (comes next)
export class Lectures {
  open() {}
}
